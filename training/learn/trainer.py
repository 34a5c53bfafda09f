"""Trains a policy from a reward table, with Ray Train workers and DDP. It loads no UNet.

The frozen text encoder reads each prompt once, in a Ray Data pool. A killed worker is replaced and the training goes on
from its checkpoint to the same bits; so does one that is typed again. What a worker does is `training.learn.worker`.
Shapes: P prompts, K budgets, S seeds.
"""

import json
import logging
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
from ray.data import ActorPoolStrategy
from ray.train.torch import TorchTrainer

from actors.offer_heads import OFFERS, OfferHeads, save_heads
from actors.policy import CARD, WEIGHTS, Network, PolicyCard, Setting, choose_steps
from actors.policy_network import StepPolicy, save_policy
from actors.prompt_encoder import PromptEncoder, prompt_features
from pipelines.storage.checkpoints import ModelSource
from pipelines.storage.folder import Folder
from training.learn.batches import Batch, num_slots
from training.learn.embeddings import EmbedPrompts
from training.learn.hyperparameters import Hyperparameters
from training.learn.journal import read_metrics
from training.learn.offers import fit_offers, offer_stage, with_correction
from training.learn.stages import OfferStage, Stage, StepStage
from training.learn.step_loss import outputs, units_of
from training.learn.worker import LoopConfig, work
from training.learning_error import LearningError, Unlearnable
from training.reward_table import RewardTable, split

log = logging.getLogger(__name__)
IDENTITY, POLICY = "training/training.json", "policy"
EMBED_ROWS, POLL_S = 256, 1.0
CALIBRATION_PRICES, BELOW = 16, 8  # points; the first price above 0 is the trained range's lower bound over BELOW
Progress = Callable[[dict[str, float]], None]  # a line of metrics.jsonl


class TrainingError(LearningError, RuntimeError):
    """A training that cannot start: what is wrong and the remedy."""


class TrainingStopped(TrainingError):
    """A training that ended without a policy; the same command goes on."""

    began = True


@dataclass(frozen=True)
class TrainConfig:
    """What a training is made of. `width` to `num_heads`: the network's size; `setting`: the table's."""

    model: ModelSource  # of which the text encoder alone is loaded
    learning: Hyperparameters
    setting: Setting = field(default_factory=Setting)
    width: int = 256
    num_layers: int = 3
    num_heads: int = 4
    held_out: float = 0.1  # share of the prompts that only measure; the weights that are best by them are kept
    reports: int = 40  # checkpoints and lines of metrics in all
    num_workers: int = 1
    use_gpu: bool = False
    scorers: dict[str, float] = field(default_factory=dict)  # weights that the table's quality is made of
    judge: str | None = None  # a scorer of the table that its quality does not count
    max_failures: int = 3  # groups of workers that may die before the training gives up
    embed_actors: int = 1


def train(folder: Folder, table: RewardTable, config: TrainConfig, on_progress: Progress | None = None) -> PolicyCard:
    """The policy of a reward table, in `policy/` of the folder; returns its card. Needs a running Ray.

    ValueError where table, batches and workers do not fit, TrainingError where the folder holds another training or
    the workers kept dying.
    """
    learned, held_out = split(table, config.held_out)
    num_slots(config.learning.batch_size, len(learned.prompts), config.num_workers)
    text_encoder, hidden_size = ray.get(ray.remote(_described).options(num_cpus=1).remote(config.model))
    network = Network(hidden_size, len(table.choices), config.width, config.num_layers, config.num_heads)
    _claim(folder, _identity(table, config, text_encoder))
    units = units_of(learned.quality, config.learning.temperature)
    steps = StepStage(network, config.learning, units, table.choices, table.costs)
    embedded = {"learned": _embedded(learned, config), "held_out": _embedded(held_out, config)}
    features = {name: _features(dataset, hidden_size) for name, dataset in embedded.items()}
    offers = _offer_stage((learned, features["learned"]), (held_out, features["held_out"]), config)
    stages: tuple[Stage, ...] = (steps, offers) if offers else (steps,)
    loop = LoopConfig(folder, stages, len(table.choices), hidden_size, len(learned.prompts), config.reports)
    if not all(loop.is_done(stage) for stage in stages):
        with _MetricsWatcher(loop, on_progress):
            _fit(loop, embedded, config)
    card = PolicyCard(
        choices=table.choices,
        costs=tuple(float(cost) for cost in table.costs),
        temperature=config.learning.temperature,
        text_encoder=text_encoder,
        network=network,
        setting=config.setting,
        training_data=table.fingerprint(),
    )
    batches = loop.rows(embedded["held_out"].iter_rows()).chunks()
    card = _publish(loop, steps, card, batches)
    rows = {name: at for at, name in enumerate((*learned.prompt_ids, *held_out.prompt_ids))}
    order = [rows[name] for name in table.prompt_ids]
    heads = _heads(table, np.concatenate([*features.values()])[order], config, text_encoder)
    if heads:
        _publish_offers(loop, replace(heads, policy=card.version), offers, batches)
    return card


def _features(dataset: ray.data.Dataset, hidden_size: int) -> np.ndarray:
    """(P, D) of all prompts of a dataset, by number."""
    tokens = {row["row"]: np.frombuffer(row["embeds"], np.float16) for row in dataset.iter_rows()}
    return np.stack([prompt_features(tokens[row].reshape(-1, hidden_size)) for row in range(len(tokens))])


def _offer_stage(
    learned: tuple[RewardTable, np.ndarray], held_out: tuple[RewardTable, np.ndarray], config: TrainConfig
) -> OfferStage | None:
    """What is learned beside the heads; None for the paper's reward, and where there is too little for heads."""
    if config.learning.reward != "priced" or learned[0].num_seeds < 2:
        return None
    try:
        return offer_stage(learned, held_out, config.judge, config.learning, config.width)
    except Unlearnable:
        return None  # said where the heads are fitted


def _described(model: ModelSource) -> tuple[str, int]:
    """Fingerprint and width of a checkpoint's text encoder; in a task, since it brings the encoder."""
    encoder = PromptEncoder(model.local())
    return encoder.fingerprint, encoder.hidden_size


def _identity(table: RewardTable, config: TrainConfig, text_encoder: str) -> dict[str, Any]:
    """What must stay the same where a training goes on; not how many workers do it."""
    names = ("learning", "width", "num_layers", "num_heads", "held_out")
    return {"table": table.fingerprint(), "text_encoder": text_encoder} | {n: asdict(config)[n] for n in names}


def _claim(folder: Folder, identity: dict[str, Any]) -> None:
    """Claims the folder for this training; another training's folder is refused."""
    text = json.dumps(identity, indent=2, sort_keys=True)
    if folder.create(IDENTITY, text.encode()):
        return
    try:
        there = dict(json.loads(folder.read(IDENTITY)))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{folder.url_of(IDENTITY)} cannot be read: {error}; train in another folder") from error
    changed = [name for name, value in json.loads(text).items() if there.get(name) != value]
    if changed:
        raise TrainingError(
            f"{folder.url} holds a training with another {', '.join(changed)}: set it back, or train in another folder"
        )


def _embedded(table: RewardTable, config: TrainConfig) -> ray.data.Dataset:
    """One prompt a row: row, quality (K, S) float32 as bytes, embeds; in memory, the text encoder is let go."""
    arrow = pa.table(
        {
            "row": np.arange(len(table.prompts)),
            "prompt": pa.array(table.prompts),
            "quality": [values.astype(np.float32).tobytes() for values in table.quality],
        }
    )
    prompts = ray.data.from_arrow(arrow)
    prompts.context.enable_progress_bars = prompts.context.print_on_execution_start = False
    dataset = prompts.map_batches(
        EmbedPrompts,
        fn_constructor_args=(config.model,),
        batch_size=EMBED_ROWS,
        compute=ActorPoolStrategy(size=config.embed_actors),
        num_gpus=1 if config.use_gpu else None,
    )
    return dataset.materialize()


def _fit(loop: LoopConfig, datasets: dict[str, Any], config: TrainConfig) -> None:
    """Runs the workers to the end. What Ray itself would store goes to a temporary folder: the journal is ours."""
    with tempfile.TemporaryDirectory(prefix="train-") as scratch:
        trainer = TorchTrainer(
            work,
            train_loop_config={"loop": loop},
            scaling_config=ray.train.ScalingConfig(num_workers=config.num_workers, use_gpu=config.use_gpu),
            run_config=ray.train.RunConfig(
                storage_path=scratch, failure_config=ray.train.FailureConfig(max_failures=config.max_failures)
            ),
            datasets=datasets,
            dataset_config=ray.train.DataConfig(datasets_to_split=[]),  # each takes its slots' rows, always the same
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
            raise TrainingStopped(
                f"the training's workers failed: {' '.join(reason)}; the same command goes on"
            ) from error


def _best(loop: LoopConfig, stage: Stage) -> dict[str, Any]:
    """The weights of a stage that did best on held-out prompts. TrainingStopped where it has not ended."""
    state = loop.state(stage)
    if state is None or not loop.is_done(stage):
        raise TrainingStopped(f"{loop.folder.url}: the training ended before its last step; run it again, it goes on")
    return dict(state["best"]["policy"])


def _publish(loop: LoopConfig, stage: StepStage, card: PolicyCard, held_out: list[Batch]) -> PolicyCard:
    """The best weights as a policy with its frontier on held-out prompts, weights first."""
    policy = StepPolicy(stage.size)
    policy.load_state_dict(_best(loop, stage))
    policy = stage.finished(policy)
    card = replace(card, calibration=held_out_calibration(policy, held_out, card, stage.learning.prices))
    with tempfile.TemporaryDirectory(prefix="policy-") as scratch:
        card = save_policy(scratch, policy, card)
        for name in (WEIGHTS, CARD):
            loop.folder.write(f"{POLICY}/{name}", (Path(scratch) / name).read_bytes())
    return card


def _heads(table: RewardTable, features: np.ndarray, config: TrainConfig, text_encoder: str) -> OfferHeads | None:
    """What sets bars for another try, where the table has two seeds or more to tell how scores scatter."""
    if table.num_seeds < 2:
        log.warning("the table has one seed a prompt: the policy sets no bars for another try")
        return None
    try:
        return fit_offers(table, features, config.judge, config.scorers, text_encoder)
    except Unlearnable as error:
        log.warning("the policy sets no bars for another try: %s", error)
        return None


def _publish_offers(loop: LoopConfig, heads: OfferHeads, stage: OfferStage | None, held_out: list[Batch]) -> None:
    """Heads with what a stage has learned beside them, as far as it counts, which is said."""
    if stage:
        heads = with_correction(heads, stage, _best(loop, stage), held_out)
        assert heads.correction is not None
        log.info("%s", heads.correction.words)
    loop.folder.write(f"{POLICY}/{OFFERS}", save_heads(heads))


def held_out_calibration(
    policy: StepPolicy, held_out: list[Batch], card: PolicyCard, prices: tuple[float, float]
) -> tuple[dict[str, float], ...]:
    """What held-out prompts get at some prices, decided by argmax: for forecasts, and as bounds for others."""
    scores, _ = outputs(policy, held_out)
    quality = np.concatenate([batch.quality for batch in held_out]).mean(axis=2)  # (P, K)
    costs, steps = np.array(card.costs), np.array([choice.num_steps for choice in card.choices])
    points = []
    for price in (0.0, *np.geomspace(prices[0] / BELOW, prices[1], CALIBRATION_PRICES).tolist()):
        index, _ = choose_steps(scores, costs, price, card.temperature)
        points.append(
            {
                "price": float(price),
                "mean_cost": float(costs[index].mean()),
                "mean_steps": float(steps[index].mean()),
                "quality": float(np.take_along_axis(quality, index[:, None], axis=1).mean()),
                "least_cost": float(costs[index].min()),
                "most_cost": float(costs[index].max()),
            }
        )
    return tuple(points)


class _MetricsWatcher:
    """Calls on_progress for each new line of metrics while the workers run, stage by stage."""

    def __init__(self, loop: LoopConfig, on_progress: Progress | None) -> None:
        self.loop, self.on_progress = loop, on_progress
        self.seen = {stage.place: self._last(stage) for stage in loop.stages}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="metrics", daemon=True)

    def __enter__(self) -> None:
        if self.on_progress:
            self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.on_progress:
            self.thread.join()

    def _last(self, stage: Stage) -> float:
        return max((record["step"] for record in read_metrics(self.loop.folder, stage.place)), default=0)

    def _watch(self) -> None:
        last = False
        while not last:
            last = self.ended.wait(POLL_S)
            for stage in self.loop.stages:
                for record in read_metrics(self.loop.folder, stage.place):
                    if record["step"] > self.seen[stage.place] and self.on_progress:
                        self.seen[stage.place] = record["step"]
                        self.on_progress(record)
