"""The clock: every block counted once, whoever reads; and a row's share of the device's time."""

import threading

import pytest
import torch

from actors.clock import Block, DeviceClock
from actors.rows import SamplerConfig
from actors.sampler import DDIMSampler
from tests.checkpoints import make_checkpoint
from tests.engine import CPU, StandIn, denoiser, flight, row, run


@pytest.fixture
def device_clock(monkeypatch) -> DeviceClock:
    monkeypatch.setattr(DeviceClock, "_event", lambda self: StandIn())
    monkeypatch.setattr(StandIn, "lost", False)
    return DeviceClock(CPU)


def test_many_readers_count_every_block_once(device_clock, switching):
    written, rising = threading.Event(), []

    def read() -> None:
        found = [device_clock.seconds]
        while not written.is_set():
            found.append(device_clock.seconds)
        rising.append(found == sorted(found))  # not reached by a reader that raised

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(3000):
        with device_clock:
            pass
    for _ in range(3000):
        device_clock._pending.append((StandIn(), StandIn()))
    written.set()
    for reader in readers:
        reader.join()
    assert rising == [True] * 3
    assert device_clock.seconds == pytest.approx(6.0)
    assert not device_clock._pending


def test_a_block_that_the_device_has_not_passed_is_not_counted_yet(device_clock, monkeypatch):
    monkeypatch.setattr(StandIn, "query", lambda self: False)
    with device_clock as block:
        assert device_clock.seconds == 0
    assert device_clock.seconds == 0
    monkeypatch.setattr(StandIn, "query", lambda self: True)
    assert device_clock.seconds == block.seconds == 0.001


def test_a_lost_device_leaves_the_last_figure(device_clock):
    with device_clock:
        pass
    StandIn.lost = True
    with device_clock:
        pass
    assert device_clock.seconds == 0.001
    StandIn.lost = False
    assert device_clock.seconds == 0.002


def test_a_block_that_raises_is_counted():
    clock = DeviceClock(CPU)
    with pytest.raises(KeyError), clock as block:
        raise KeyError
    assert clock.seconds == block.seconds > 0


def test_a_call_is_shared_among_its_rows_by_their_lanes(monkeypatch):
    monkeypatch.setattr(DeviceClock, "_event", lambda self: StandIn())
    flights = [flight("guided", 1), flight("unguided", 1, 1.0)]
    run(denoiser(4), flights)
    assert [f.seconds for f in flights] == pytest.approx([0.001 * 2 / 3, 0.001 / 3])


def test_each_call_is_in_the_shares_of_its_rows_whole():
    flights = [flight(str(i), 1 + i % 7, 1.0 if i % 3 else 5.0) for i in range(30)]
    loop = denoiser(6)
    run(loop, flights)
    whole: dict[Block, float] = {}
    for block, share in (pair for f in flights for pair in f.shares):
        whole[block] = whole.get(block, 0) + share
    assert len(whole) == loop.counts["unet_calls"]
    assert list(whole.values()) == pytest.approx([1] * len(whole))
    assert sum(f.seconds for f in flights) == pytest.approx(loop.clock.seconds)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_seconds_of_all_pictures_are_those_of_the_device(tmp_path, kind):
    sampler = DDIMSampler(SamplerConfig(str(make_checkpoint(kind, tmp_path / kind)), device="cpu", lanes=6))
    rows = [
        row(
            str(i),
            seed=i,
            num_steps=1 + i % 5,
            guidance_scale=1.0 if i % 3 else 4.0,
            width=16 if i % 4 else 24,
            negative_prompt="dark" if i % 5 else None,
        )
        for i in range(23)
    ]
    pictures = [f.result() for f in [sampler.submit(r) for r in rows]]
    stats = sampler.stats()
    assert all(picture.seconds > 0 for picture in pictures)
    assert sum(picture.seconds for picture in pictures) == pytest.approx(
        stats["unet_seconds"] + stats["vae_seconds"] + stats["text_seconds"]
    )
    assert stats["lanes_filled"] == sum(picture.lane_steps for picture in pictures)
    sampler.close()


def test_what_came_before_is_not_charged_to_a_later_row(tmp_path, monkeypatch):
    """A compilation, say: the first call's time is its own rows'."""
    sampler = DDIMSampler(SamplerConfig(str(make_checkpoint("sd1", tmp_path / "sd1")), device="cpu", lanes=4))
    sampler.load()
    monkeypatch.setattr(DeviceClock, "_event", lambda self: StandIn())
    monkeypatch.setattr(StandIn, "elapsed_time", lambda self, end: 1e6)
    first = sampler.submit(row("a", num_steps=1)).result()
    monkeypatch.setattr(StandIn, "elapsed_time", lambda self, end: 1.0)
    second = sampler.submit(row("b", num_steps=1)).result()
    assert first.seconds == pytest.approx(3000)  # one call each of encoder, UNet and decoder
    assert second.seconds == pytest.approx(0.003)
    sampler.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_the_seconds_are_known_with_the_picture(tmp_path):
    sampler = DDIMSampler(SamplerConfig(str(make_checkpoint("sd1", tmp_path / "sd1")), device="cuda", lanes=4))
    pictures = [f.result() for f in [sampler.submit(row(str(i), seed=i)) for i in range(9)]]
    stats = sampler.stats()
    assert sum(picture.seconds for picture in pictures) == pytest.approx(
        stats["unet_seconds"] + stats["vae_seconds"] + stats["text_seconds"], rel=1e-3
    )
    sampler.close()
