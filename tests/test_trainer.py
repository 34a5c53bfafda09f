"""Training on Ray: two workers as one, a killed worker, a second start, and what a folder refuses."""

import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from safetensors.torch import load_file
from tables import world

from actors.offer_heads import OFFERS, load_heads
from actors.policy import Setting, read_card
from actors.policy_network import load_policy
from actors.prompt_encoder import PromptEncoder
from actors.selector import SelectorConfig, StepSelector
from pipelines.storage.checkpoints import ModelSource
from pipelines.storage.folder import Folder
from training.learn.hyperparameters import Hyperparameters
from training.learn.journal import CHECKPOINT, Journal, last_checkpoint, read_metrics
from training.learn.trainer import TrainConfig, TrainingError, _offer_stage, train

LEARNING = Hyperparameters(prices=(0.15, 6.0), temperature=0.36, batch_size=32, epochs=8, learning_rate=3e-3)
TABLE = world(120)


class DeadlyFolder(Folder):
    """Kills the process that writes the third checkpoint of a stage, once a stage."""

    written: ClassVar[Counter[str]] = Counter()

    def write(self, key: str, data: bytes) -> None:
        super().write(key, data)
        if key.endswith(CHECKPOINT):
            DeadlyFolder.written[key] += 1
            if DeadlyFolder.written[key] == 3 and self.create(f"killed/{key}", str(os.getpid()).encode()):
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its text encoder and nothing else that could be loaded."""
    folder = make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1")
    for weights in (*folder.glob("unet/*.safetensors"), *folder.glob("vae/*.safetensors")):
        weights.unlink()
    return folder


def config(model: Path, **values: Any) -> TrainConfig:
    setting = Setting(unet="beef", solver="ddim")
    size = {"width": 32, "num_layers": 1, "num_heads": 2, "held_out": 0.2, "reports": 6}
    return TrainConfig(ModelSource(str(model)), LEARNING, setting, **(size | values))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "policy" / "policy.safetensors"))


def test_embeddings_are_those_the_selector_sees(model: Path) -> None:
    encoder, prompts = PromptEncoder(str(model)), ["a fox", "w " * 50, "", "a fox in the snow at night"]
    embeds = encoder.embed(prompts)
    for rows, expected, mask in encoder.batches(prompts):
        for at, row in enumerate(rows):
            real = expected[at, : int(mask[at].sum())].numpy()
            np.testing.assert_allclose(embeds[row].astype(np.float32), real, atol=2e-3)


def test_a_journal_forgets_what_came_after_its_step(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert last_checkpoint(folder) is None
    assert read_metrics(folder) == []
    first = Journal(folder, 0)
    for step in (5, 10, 15):
        first.add({"step": step, "reward": step / 10}, {"at": torch.tensor(step)})
    again = Journal(folder, 10)
    again.add({"step": 15, "reward": 9.0}, {"at": torch.tensor(15)})
    assert [(record["step"], record["reward"]) for record in read_metrics(folder)] == [(5, 0.5), (10, 1.0), (15, 9.0)]
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint["at"].item() == 15
    assert len([file for file in (tmp_path / "training/tensorboard").iterdir() if "tfevents" in file.name]) == 2


@pytest.fixture
def here(ray_cluster: Any) -> None:
    """Workers get this module's classes by value: they do not see the tests' folder."""
    ray_cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_two_workers_learn_a_policy_that_the_selector_reads(model: Path, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    folder = Folder(str(tmp_path))
    card = train(folder, TABLE, config(model, num_workers=2), seen.append)
    metrics, of_offers = read_metrics(folder), read_metrics(folder, "training/offers")
    assert seen == metrics + of_offers
    assert {record["step"] for record in of_offers} == {record["step"] for record in metrics}
    assert metrics[-1]["reward"] > metrics[0]["reward"]
    assert list((tmp_path / "training/tensorboard").iterdir())

    policy, read = load_policy(str(tmp_path / "policy"))
    assert not policy.training
    assert read == card == read_card(str(tmp_path / "policy"))
    assert (card.setting.unet, card.training_data) == ("beef", TABLE.fingerprint())
    costs = [point["mean_cost"] for point in card.calibration]
    assert costs == sorted(costs, reverse=True)
    heads = load_heads(tmp_path / "policy")
    assert heads is not None
    assert heads.correction is not None
    assert heads.correction.scale in (0.0, 0.5, 1.0)
    selector = StepSelector(
        SelectorConfig("policy", policy_path=str(tmp_path / "policy"), text_encoder_path=str(model))
    )
    assert selector.choices == TABLE.choices
    assert selector.score(list(TABLE.prompts[:3])).shape == (3, 4)

    assert train(folder, TABLE, config(model, num_workers=2), seen.append) == card
    assert seen == metrics + of_offers
    changed = replace(config(model), learning=replace(LEARNING, seed=1))
    with pytest.raises(TrainingError, match="another learning"):
        train(folder, TABLE, changed)


@pytest.mark.parametrize("changes", [{"reward": "paper"}, {}])
def test_offers_are_not_corrected_for_the_papers_reward_or_one_seed(changes: dict[str, Any], model: Path) -> None:
    learning = replace(LEARNING, **changes)
    table = TABLE if changes else world(120, seeds=1)
    pair = table, np.random.default_rng(0).normal(size=(120, 4))
    assert _offer_stage(pair, pair, replace(config(model), learning=learning)) is None
    assert _offer_stage((TABLE, pair[1]), (TABLE, pair[1]), config(model)) is not None


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_one_worker_two_workers_and_a_killed_one_end_alike(model: Path, tmp_path: Path) -> None:
    """Two workers as one to rounding, a training whose worker was killed as one that was let alone to the bit."""
    train(Folder(str(tmp_path / "one")), TABLE, config(model))
    train(Folder(str(tmp_path / "two")), TABLE, config(model, num_workers=2))
    train(DeadlyFolder(str(tmp_path / "killed")), TABLE, config(model, num_workers=2))
    for place in ("training", "training/offers"):
        assert (tmp_path / "killed/killed" / place / CHECKPOINT).exists()
    one, two, killed = (weights(tmp_path / name) for name in ("one", "two", "killed"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-4, rtol=2e-3)
        assert torch.equal(killed[name], two[name])
    metrics = {name: read_metrics(Folder(str(tmp_path / name))) for name in ("one", "two", "killed")}
    assert metrics["killed"] == metrics["two"]
    bars = [(tmp_path / name / "policy" / OFFERS).read_bytes() for name in ("killed", "two")]
    assert bars[0] == bars[1]
    for a, b in zip(metrics["one"], metrics["two"], strict=True):
        assert a == pytest.approx(b, rel=1e-2, abs=1e-3)
