"""Whose fault an error is, the row's or the engine's; and that no future is left waiting, in any order of events."""

import threading
import time
from concurrent.futures import CancelledError, Future, wait
from functools import partial
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch

from actors.denoise import Denoiser, EndOfRows, ListSource
from actors.diffusion import Diffusion
from actors.fault import check_engine, each_alone
from actors.lanes import Lanes
from actors.rows import EngineBroken, NotFinite, SamplerConfig
from actors.sampler import _STOP, DDIMSampler, _Request, _Requests
from actors.solver import InvalidSteps
from tests.checkpoints import make_checkpoint
from tests.engine import SHAPE, denoiser, flight, row, run

LOST = "CUDA error: an illegal memory access was encountered"


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1")


@pytest.fixture
def sampler(sd1):
    sampler = DDIMSampler(SamplerConfig(str(sd1), device="cpu", lanes=4))
    sampler.load()
    yield sampler
    sampler.close()


def rows(n: int, **values) -> list:
    return [row(str(i), seed=i, **values) for i in range(n)]


def errors_of(futures: list[Future]) -> list[type]:
    return [type(future.exception(timeout=300)) for future in futures]


def lost(*args, **kwargs):
    raise RuntimeError(LOST)


def no_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory")


class LostAfter:
    """A UNet that works for some calls and never again."""

    def __init__(self, calls: int, error: Exception | None = None):
        self.left, self.error = calls, error or RuntimeError(LOST)

    def __call__(self, x, t, embeds, added):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return 0.1 * x


def poisonous(x, t, embeds, added):
    if (embeds.amax((1, 2)) > 0).any():
        raise RuntimeError("boom")
    return 0.1 * x


# The denoiser: a call of the same shape


@pytest.mark.parametrize("calls", [0, 1, 3, 20])
def test_a_lost_device_fails_no_row(calls):
    failed: list = []
    with pytest.raises(EngineBroken, match="illegal memory access") as caught:
        denoiser(8, LostAfter(calls)).run(
            ListSource([flight(str(i), 5) for i in range(200)]), lambda f, latent: None, lambda f, e: failed.append(f)
        )
    assert str(caught.value.__cause__) == LOST
    assert failed == []


def test_the_error_of_the_row_is_named_before_the_probes():
    def predict(x, t, embeds, added):
        raise RuntimeError("first" if embeds.any() else "second")

    bad = flight("bad", 2)
    bad.embeds = torch.ones(2, 3, 4)
    with pytest.raises(EngineBroken, match=r"first.*second"):
        run(denoiser(4, predict), [bad])


def test_an_output_that_is_not_finite_for_the_probe_is_the_engines_fault():
    def predict(x, t, embeds, added):
        if embeds.any():
            raise RuntimeError("boom")
        return x * torch.nan

    bad = flight("bad", 2)
    bad.embeds = torch.ones(2, 3, 4)
    with pytest.raises(EngineBroken, match="inf or nan"):
        run(denoiser(4, predict), [bad])


def test_one_poisonous_row_fails_alone_and_its_neighbours_keep_their_bytes():
    flights = [flight(str(i), 2 + i) for i in range(9)]
    flights[4].embeds = torch.ones(2, 3, 4)
    loop, without = denoiser(6, poisonous), denoiser(6)
    latents, errors = run(loop, flights)
    expected, _ = run(without, [flight(str(i), 2 + i) for i in range(9) if i != 4])
    assert {name: str(error) for name, error in errors.items()} == {"4": "boom"}
    assert latents.keys() == expected.keys()
    assert all(torch.equal(latents[name], expected[name]) for name in expected)
    assert loop.counts["lanes_filled"] == without.counts["lanes_filled"]  # the probe is not counted


def test_the_probe_has_the_shape_of_every_other_call():
    shapes = set()

    def predict(x, t, embeds, added):
        shapes.add((x.shape, x.dtype, t.shape, t.dtype, embeds.shape, embeds.dtype, x.is_contiguous()))
        return poisonous(x, t, embeds, added)

    flights = [flight(str(i), 3) for i in range(5)]
    flights[2].embeds = torch.ones(2, 3, 4)
    loop = denoiser(6, predict)
    _, errors = run(loop, flights)
    assert list(errors) == ["2"]
    assert shapes == {((6, *SHAPE), torch.float32, (6,), torch.int64, (6, 3, 4), torch.float32, True)}


def test_out_of_memory_in_the_probe_proves_nothing():
    def predict(x, t, embeds, added):
        if not embeds.any():
            raise torch.OutOfMemoryError("no room for a probe")
        raise RuntimeError("boom")

    bad = flight("bad", 2)
    bad.embeds = torch.ones(2, 3, 4)
    _, errors = run(denoiser(4, predict), [bad])
    assert str(errors["bad"]) == "boom"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(""), MemoryError(""), RuntimeError("DefaultCPUAllocator: ")])
def test_no_kind_of_out_of_memory_breaks_the_engine(error):
    def probe():
        raise error

    check_engine(probe)


@pytest.mark.parametrize("error", [EngineBroken("broken"), torch.OutOfMemoryError("full")])
def test_each_alone_passes_on_what_is_no_items_fault(error):
    failed: list = []

    def call(items):
        if len(items) == 1:
            raise error
        raise RuntimeError("some item")

    with pytest.raises(type(error), match=str(error)):
        each_alone(call, [1, 2], lambda item, e: failed.append(item))
    assert failed == []


def test_each_alone_passes_on_what_the_callback_raises():
    def fail(item, error):
        raise EngineBroken("broken")

    with pytest.raises(EngineBroken):
        each_alone(lost, [1, 2], fail)


# Out of memory, at every call of every kind


class Once:
    """Out of memory at one call of all, counted over every callable that it wraps."""

    def __init__(self, at: int):
        self.left = at

    def __call__(self, call, *args):
        self.left -= 1
        if self.left == -1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(*args)


@pytest.mark.parametrize("lanes", [2, 8])
@pytest.mark.parametrize("at", range(14))
def test_out_of_memory_once_anywhere_settles_every_row_once(at, lanes, monkeypatch):
    """In a UNet call, in reading prompts or in admitting a row, rows in the backlog, the source ended or not."""
    once, settled = Once(at), []
    loop = denoiser(lanes, lambda *inputs: once(lambda: 0.1 * inputs[0]), batch=4)
    loop.prepare = partial(once, lambda names: [flight(name, 1 + int(name) % 3) for name in names])
    admit = Lanes.admit
    monkeypatch.setattr(Lanes, "admit", lambda self, flight: once(admit, self, flight))
    loop.run(
        ListSource([str(i) for i in range(9)]),
        lambda f, latent: settled.append(f.row),
        lambda name, error: settled.append(name),
    )
    assert once.left < 0
    assert sorted(settled) == [str(i) for i in range(9)]


def test_a_row_that_cannot_start_again_with_two_lanes_fails_alone(monkeypatch):
    calls: list[int] = []

    def predict(x, t, embeds, added):
        calls.append(len(x))
        return no_memory() if len(calls) == 2 else 0.1 * x

    admit = Lanes.admit
    monkeypatch.setattr(Lanes, "admit", lambda self, one: no_memory() if calls and one.row == "1" else admit(self, one))
    latents, errors = run(denoiser(4, predict), [flight(str(i), 3) for i in range(4)])
    assert {name: type(error) for name, error in errors.items()} == {"1": MemoryError}
    assert sorted(latents) == ["0", "2", "3"]
    assert set(calls) == {4, 2}


def test_out_of_memory_that_never_ends_ends():
    with pytest.raises(MemoryError, match="no row is left"):
        denoiser(8).run(ListSource([]), lambda f, latent: None, lambda f, e: None, no_memory)


def test_a_row_that_ended_is_not_lost_to_its_neighbours_out_of_memory():
    """The call of two raises, the first alone ends, the second alone finds no memory."""
    calls = []

    def predict(x, t, embeds, added):
        calls.append(len(calls))
        if calls[-1] == 0:
            raise RuntimeError("together they do not fit")
        if calls[-1] == 2:
            raise torch.OutOfMemoryError("full")
        return 0.1 * x

    latents, errors = run(denoiser(2, predict), [flight("a", 1, 1.0), flight("b", 1, 1.0)])
    assert list(latents) == ["a"]
    assert {name: type(error) for name, error in errors.items()} == {"b": MemoryError}


def test_an_error_after_the_unet_call_moves_no_row(monkeypatch):
    step, failures = Lanes._step, [1, 2]

    def once(self, *args):
        if failures:
            failures.pop()
            raise RuntimeError("a kernel")
        return step(self, *args)

    monkeypatch.setattr(Lanes, "_step", once)
    latents, errors = run(denoiser(4), [flight("a", 3), flight("b", 3)])
    monkeypatch.undo()
    expected, _ = run(denoiser(4), [flight("a", 3), flight("b", 3)])
    assert list(errors) == ["a"]  # it raised with "b", and alone
    assert torch.equal(latents["b"], expected["b"])


def test_a_source_of_requests_that_has_ended_goes_on_raising():
    source, taken_back = _Requests(), Future()
    taken_back.cancel()
    source.queue.put(_Request(row(), taken_back))
    source.queue.put(_STOP)
    for wait_for_it in (True, False, True):
        with pytest.raises(EndOfRows):
            source.take(wait_for_it)


# The sampler: a small picture of a fixed prompt


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_good_checkpoint_passes_its_probe_without_a_trace(tmp_path, kind):
    sampler = DDIMSampler(SamplerConfig(str(make_checkpoint(kind, tmp_path / kind)), device="cpu"))
    sampler.load()
    sampler.model.probe(ValueError("a row's own"))
    assert set(sampler.stats().values()) == {0}
    assert sampler.broken is None
    sampler.close()


def test_the_embedded_checkpoint_passes_its_probe():
    sampler = DDIMSampler(SamplerConfig("training/scenes/model", device="cpu"))
    sampler.load()
    sampler.close()


PARTS = {
    "text encoder": lambda model: setattr(model.text_encoders[0], "forward", lost),
    "UNet": lambda model: setattr(model.unet, "forward", lost),
    "decoder": lambda model: setattr(model.vae, "decode", lost),
    "NaN in the UNet": lambda model: model.unet.conv_out.weight.fill_(torch.nan),
    "NaN in the decoder": lambda model: model.vae.decoder.conv_out.weight.fill_(torch.nan),
    "NaN in the text encoder": lambda model: [p.fill_(torch.nan) for p in model.text_encoders[0].parameters()],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_breaks_fails_no_row_by_its_own_fault(sampler, part):
    assert sampler.submit(row()).result(timeout=300)
    figures = sampler.stats()
    PARTS[part](sampler.model)
    futures = [sampler.submit(r) for r in rows(1)]
    assert errors_of(futures) == [EngineBroken]
    sampler._thread.join(30)
    assert futures[0].exception() is sampler.broken
    for call in (sampler.load, lambda: sampler.submit(row())):
        with pytest.raises(EngineBroken):
            call()
    assert sampler.stats()["images"] >= figures["images"] == 1
    sampler.close()


@pytest.mark.parametrize("part", PARTS)
def test_loading_on_a_broken_device_raises(sd1, part, monkeypatch):
    def load_text(self, *args):
        found = honest(self, *args)
        self.text_encoders = found[1]
        PARTS[part](self)
        return found

    honest = Diffusion._load_text
    monkeypatch.setattr(Diffusion, "_load_text", load_text)
    sampler = DDIMSampler(SamplerConfig(str(sd1), device="cpu", lanes=4))
    for call in (sampler.load, sampler.load, lambda: sampler.submit(row())):
        with pytest.raises(EngineBroken):
            call()
    assert isinstance(sampler.broken, EngineBroken)
    assert sampler.stats() == {}
    sampler.close()


def test_no_memory_while_loading_reaches_the_caller(sd1, monkeypatch):
    monkeypatch.setattr(Diffusion, "_load_text", no_memory)
    sampler = DDIMSampler(SamplerConfig(str(sd1), device="cpu"))
    with pytest.raises(torch.OutOfMemoryError):
        sampler.load()
    assert sampler.stats() == {}
    sampler.close()


def test_one_row_that_is_not_finite_by_its_own_fault_fails_alone(sampler):
    futures = [sampler.submit(r) for r in [*rows(3), row("hot", guidance_scale=1e30), *rows(3)]]
    assert errors_of(futures) == [type(None)] * 3 + [NotFinite] + [type(None)] * 3
    assert sampler.broken is None


def test_a_row_that_cannot_be_decoded_or_prepared_fails_alone_and_the_others_keep_their_bytes(sampler):
    good = [future.result(timeout=300).image for future in [sampler.submit(r) for r in rows(7)]]
    decode_slice = sampler._decode_slice

    def picky(ended):
        if any(flight.row.row.id == "bad" for flight, _ in ended):
            raise ValueError("no such picture")
        return decode_slice(ended)

    sampler._decode_slice = picky
    futures = [sampler.submit(r) for r in [*rows(4), row("bad"), row("steps", num_steps=5000), *rows(7)[4:]]]
    assert errors_of(futures) == [*[type(None)] * 4, ValueError, InvalidSteps, *[type(None)] * 3]
    images = [f.result().image for f in futures if not f.exception()]
    assert all(np.array_equal(a, b) for a, b in zip(images, good, strict=True))
    assert sampler.broken is None


# Every order of submit, cancel, close, abandon and out of memory


class Gate:
    """Holds the resident thread in a UNet call."""

    def __init__(self, sampler: DDIMSampler, then=None):
        self.reached, self.opened = threading.Event(), threading.Event()
        self.honest, self.then = sampler.model.predict, then
        sampler.model.predict = self

    def __call__(self, *inputs):
        self.reached.set()
        assert self.opened.wait(30)
        return self.then(*inputs) if self.then else self.honest(*inputs)


def closing(sampler: DDIMSampler) -> threading.Thread:
    thread = threading.Thread(target=sampler.close)
    thread.start()
    while not sampler._closed:
        threading.Event().wait(0.001)
    return thread


def test_closing_twice_or_before_loading_returns(sd1):
    sampler = DDIMSampler(SamplerConfig(str(sd1)))
    sampler.close()
    sampler.close()
    for call in (sampler.load, lambda: sampler.submit(row())):
        with pytest.raises(RuntimeError, match="the sampler is closed"):
            call()


def test_nothing_is_taken_after_close(sampler):
    future = sampler.submit(row())
    sampler.close()
    assert future.done()
    with pytest.raises(RuntimeError, match="the sampler is closed"):
        sampler.submit(row())
    sampler.close()


@pytest.mark.parametrize("order", list(permutations(["submit", "cancel", "close"])), ids="-".join)
@pytest.mark.parametrize("then", [None, lost, no_memory], ids=["well", "lost", "no memory"])
def test_every_future_settles_in_every_order(sampler, order, then):
    """While a call is under way. `lost`: the engine is abandoned with rows in flight, in the queue and cancelled."""
    gate = Gate(sampler, then)
    if then is lost:
        sampler.model.unet.forward = lost
    futures = [sampler.submit(r) for r in rows(3)]
    assert gate.reached.wait(30)
    futures += [sampler.submit(r) for r in rows(3)]
    threads = []
    for act in order:
        if act == "cancel":
            futures[-1].cancel()
        elif act == "close":
            threads.append(closing(sampler))
        elif threads:
            with pytest.raises(RuntimeError, match="closed"):
                sampler.submit(row())
        else:
            futures += [sampler.submit(r) for r in rows(20)]
    gate.opened.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not wait(futures, timeout=300).not_done  # those that were cancelled count as well
    kinds = {type(f.exception()) for f in futures if not f.cancelled()}
    assert kinds == {{None: type(None), lost: EngineBroken, no_memory: MemoryError}[then]}
    assert sampler._open == set()


def test_abandoning_settles_what_was_cancelled_or_settled_before(sampler):
    """A future that somebody else settled must not keep the others waiting."""
    gate = Gate(sampler, lost)
    sampler.model.unet.forward = lost
    futures = [sampler.submit(r) for r in rows(12)]
    assert gate.reached.wait(30)
    futures[2].set_result("by another")
    for _ in range(9):  # seen as open, and settled the moment after
        sampler._open.add(Future())
    for future in sampler._open - {*futures}:
        future.set_result(None)
    gate.opened.set()
    assert not wait(futures, timeout=300).not_done
    assert errors_of([f for f in futures if f is not futures[2]]) == [EngineBroken] * 11


def test_rows_submitted_while_the_engine_is_abandoned_settle_or_are_refused(sampler):
    futures, refused, start = [], [], threading.Event()

    def submit():
        start.wait()
        for r in rows(300):
            try:
                futures.append(sampler.submit(r))
                if len(futures) % 3 == 0:
                    futures[-1].cancel()
            except EngineBroken as error:
                refused.append(error)
                return

    threads = [threading.Thread(target=submit) for _ in range(3)]
    for thread in threads:
        thread.start()
    sampler.model.unet.forward = lost
    start.set()
    for thread in threads:
        thread.join(30)
    assert not wait(futures, timeout=300).not_done
    for future in futures:
        with pytest.raises((EngineBroken, CancelledError)):
            future.result()
    sampler._thread.join(30)
    with pytest.raises(EngineBroken):
        sampler.submit(row())


@pytest.mark.parametrize("memory", [1, 2, 5])
@pytest.mark.parametrize("close_first", [False, True])
def test_no_memory_in_the_decoder_during_close(sampler, memory, close_first):
    """memory: pictures of a call that fit. Rows that ended and were not decoded when it came stay in line."""
    gate, decode, sizes = Gate(sampler), sampler.model.decode, []

    def tight(latents):
        sizes.append(len(latents))
        return decode(latents) if len(latents) <= memory else no_memory()

    sampler.model.decode = tight
    futures = [sampler.submit(r) for r in [*rows(5), *rows(6, width=24)]]
    assert gate.reached.wait(30)
    if close_first:
        threading.Thread(target=gate.opened.set).start()
        sampler.close()
    gate.opened.set()
    assert errors_of(futures) == [type(None)] * 11
    assert sizes[0] == 8
    assert sampler.stats()["images"] == 11


@pytest.mark.parametrize("at", range(8))
def test_no_memory_once_anywhere_while_closing(sampler, at):
    """In the encoder, a UNet call or the decoder, rows ended or in flight, behind the stop."""
    once, model, gate = Once(at), sampler.model, Gate(sampler)
    encode, predict, decode = model.encode, model.predict, model.decode
    futures = [sampler.submit(row("first"))]
    assert gate.reached.wait(30)
    futures += [sampler.submit(r) for r in rows(18, num_steps=1)]
    thread = closing(sampler)
    model.encode, model.decode = partial(once, encode), partial(once, decode)
    model.predict = partial(once, predict)
    gate.opened.set()
    thread.join(60)
    assert not thread.is_alive()
    assert once.left < 0
    assert errors_of(futures) == [type(None)] * 19
    assert sampler.stats()["images"] == 19


def test_one_picture_for_which_there_is_no_memory_fails_and_the_thread_goes_on(sampler):
    honest, sampler.model.decode = sampler.model.decode, no_memory
    assert errors_of([sampler.submit(r) for r in rows(3)]) == [MemoryError] * 3
    sampler.model.decode = honest
    assert sampler.submit(row()).result(timeout=300)
    assert sampler.broken is None


def test_half_a_decoder_call_that_was_settled_is_not_settled_again(sampler):
    """The call of all raises, the first rows alone pass, then there is no memory."""
    decode, calls = sampler.model.decode, []

    def moody(latents):
        calls.append(len(latents))
        if len(calls) == 1:
            raise ValueError("together they do not pass")
        return no_memory() if len(calls) == 4 else decode(latents)

    sampler.model.decode = moody
    assert errors_of([sampler.submit(r) for r in rows(5)]) == [type(None)] * 5
    assert sampler.stats()["images"] == 5


# Figures


def read_while(act, read, check) -> None:
    """Three threads read and check until `act` has returned."""
    ended, verdicts = threading.Event(), []

    def reader():
        found = [read()]
        while not ended.is_set():
            found.append(read())
        verdicts.append(all(check(last, now) for last, now in pairwise(found)))  # not reached by one that raised

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    act()
    ended.set()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * 3


class Slow(dict):
    """Lets other threads run before each change."""

    def __setitem__(self, name, value):
        time.sleep(1e-5)
        super().__setitem__(name, value)


def test_readers_of_the_counts_see_one_moment(switching):
    """Sizes come and go; every call offers 4 lanes and fills 2."""

    def check(last, now):
        whole = now["lanes_offered"] == 4 * now["unet_calls"] and now["lanes_filled"] == 2 * now["unet_calls"]
        return whole and now["unet_calls"] >= last["unet_calls"]

    loop = Denoiser(
        lambda x, t, e, a: x,
        lambda some: some,
        denoiser(4).schedule,
        torch.device("cpu"),
        lambda shape: 4,
        1,
    )
    loop._counts = Slow(loop._counts)
    flights = [flight(str(i), 3, shape=(2, 4 + 2 * (i % 5), 4)) for i in range(60)]

    def one_by_one():
        for one in flights:
            run(loop, [one])

    read_while(one_by_one, lambda: loop.counts, check)
    assert loop.counts == {"unet_calls": 180, "lanes_filled": 360, "lanes_offered": 720}


def test_readers_of_the_stats_see_one_moment(sampler, switching):
    def check(last, now):
        rising = all(now[name] >= last[name] for name in now)
        return rising and now["images"] * 4 <= now["lanes_filled"] <= now["lanes_offered"] == 4 * now["unet_calls"]

    def render():
        wait([sampler.submit(r) for r in rows(12, num_steps=2)])

    read_while(render, sampler.stats, check)
    assert sampler.stats()["images"] == 12
    assert sampler.stats()["lanes_filled"] == 48


def test_a_size_that_cannot_work_fails_its_own_rows_and_breaks_no_engine(tmp_path):
    """A shape that never passed a call proves nothing of the device: a small picture does."""
    sampler = DDIMSampler(SamplerConfig(str(make_checkpoint("sd1", tmp_path / "sd1")), device="cpu", lanes=4))
    sampler.load()
    honest = sampler.model.predict

    def predict(x, *rest):
        if x.shape[-1] * sampler.model.info.vae_scale_factor == 32:
            raise RuntimeError("CUDA error: invalid configuration argument")
        return honest(x, *rest)

    sampler.model.predict = predict
    rows = [row(str(i), width=32 if i in (1, 4) else 16, height=32 if i in (1, 4) else 16, seed=i) for i in range(6)]
    futures = [sampler.submit(r) for r in rows]
    errors = [future.exception(60) for future in futures]
    assert [type(error) for error in errors] == [RuntimeError if i in (1, 4) else type(None) for i in range(6)]
    assert sampler.broken is None
    sampler.close()
