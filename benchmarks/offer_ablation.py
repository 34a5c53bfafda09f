"""Which part of another try earns its keep: one table learned from, one held out, ways to spend at equal cost.

    python -m benchmarks.offer_ablation JOB [--seeds 3]

JOB is the job file of a rollout with evaluate.table a rollout of other prompts and evaluate.judge a scorer that the
quality does not count. Bars and offers are tuned on the first; the judge says on the second what each way delivers,
over all orders of its seeds, at named costs of a reference picture. Shapes: P prompts, K recipes, D features.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.offer_heads import OfferHeads
from actors.offers import offer_bars
from actors.prompt_encoder import PromptEncoder, prompt_features
from jobs.job_file import settings
from jobs.job_file.read import load_job
from jobs.steps.judging import unseen_judge
from jobs.steps.training_settings import hyperparameters_of, rollout_run, table_run, whole_table
from training.judge.frontier import Bootstrap, Interval, Point, Rule, difference, hull_corners, mixture_at
from training.judge.spending import NAMED_COSTS, PRICES
from training.judge.tries import Pictures, one_bar, stopped
from training.learn.batches import Batch, TrainingRows, num_slots, rows_at
from training.learn.hyperparameters import Hyperparameters
from training.learn.learner import Learner
from training.learn.offers import fit_offers, offer_stage, with_correction
from training.learn.stages import OfferStage
from training.reward_table import RewardTable, split

REPORTS = 40
HEADS = "offers by heads"
Choose = Callable[[float], tuple[np.ndarray, np.ndarray]]  # price -> recipe (P,), bar (P,)


@dataclass(frozen=True)
class Read:
    """A table and the tokens of its prompts, by the text encoder."""

    table: RewardTable
    tokens: Sequence[np.ndarray]

    @property
    def features(self) -> np.ndarray:
        """(P, D)."""
        return np.stack([prompt_features(each) for each in self.tokens])

    @property
    def rows(self) -> TrainingRows:
        """As training takes them."""
        return TrainingRows(dict(enumerate(self.tokens)), dict(enumerate(self.table.quality.astype(np.float32))))

    def take(self, part: RewardTable) -> "Read":
        """Of some of its prompts."""
        at = {name: row for row, name in enumerate(self.table.prompt_ids)}
        return Read(part, [self.tokens[at[name]] for name in part.prompt_ids])


def learn(stage: OfferStage, rows: TrainingRows, held_out: list[Batch]) -> dict[str, object]:
    """The weights of a stage that do best on held-out prompts, as a training keeps them, learned here."""
    count = len(rows.quality)
    slots = num_slots(stage.learning.batch_size, count, 1)
    one = Learner(
        stage.network(), stage.learning, stage.loss(lambda mean: mean), stage.learning.num_steps(count, slots)
    )
    best, kept = 0.0, stage.network().state_dict()
    while one.step < one.num_steps:
        one.learn(rows.batch(rows_at(one.step, range(slots), slots, count, stage.learning.seed)))
        if one.step % max(1, one.num_steps // REPORTS) == 0 or one.step == one.num_steps:
            gain = stage.measure(one.policy, held_out)["val_gain"]
            if gain > best:
                best, kept = gain, {name: tensor.clone() for name, tensor in one.policy.state_dict().items()}
    return kept


@dataclass(frozen=True)
class Setup:
    """What is learned from and judged on. width: hidden units; share: of the prompts learned from that validate."""

    learned: Read
    held_out: Read
    judge: str
    learning: Hyperparameters
    width: int
    share: float


def corrected(setup: Setup, seed: int, by_prompt: bool) -> OfferHeads:
    """Heads of a whole table with the correction of a part of it; by_prompt: False: heads know the mean alone."""
    read, learning = setup.learned, replace(setup.learning, seed=seed)
    learned, validated = (read.take(part) for part in split(read.table, setup.share))
    pairs = [(each.table, each.features) for each in (learned, validated)]
    stage = offer_stage(pairs[0], pairs[1], setup.judge, learning, setup.width, by_prompt)
    batches = validated.rows.chunks()
    heads = heads_of(read, setup.judge, by_prompt)
    return with_correction(heads, stage, learn(stage, learned.rows, batches), batches)


def heads_of(read: Read, judge: str, by_prompt: bool = True) -> OfferHeads:
    """Heads of a whole table; by_prompt: False: they know the mean of all prompts alone."""
    features = read.features if by_prompt else np.zeros_like(read.features)
    return fit_offers(read.table, features, judge, {}, "")


def by_offers(heads: OfferHeads, features: np.ndarray, max_tries: int) -> Choose:
    """Each prompt's own offer, as a selector chooses."""
    everything, free = np.ones(len(heads.costs), bool), np.zeros(len(features), bool)

    def choose(price: float) -> tuple[np.ndarray, np.ndarray]:
        chosen = heads.choose(features, price, max_tries, everything, free)
        return chosen.recipe, chosen.bar

    return choose


def one_offer(heads: OfferHeads, learned: np.ndarray, features: np.ndarray, max_tries: int) -> Choose:
    """The offer that is best for all prompts learned from, with the bar of each prompt."""
    menu, mu = heads.menu(max_tries), heads.mu(features)
    worth = heads.worths(heads.mu(learned), max_tries).mean(axis=0)
    costs = heads.costs[menu.recipe] * menu.tries

    def choose(price: float) -> tuple[np.ndarray, np.ndarray]:
        offer = np.full(len(features), int(np.argmax(worth - price * costs)))
        return menu.recipe[offer], offer_bars(menu, offer, mu, heads.sigma)

    return choose


def rule(name: str, here: Pictures, choices: Iterable[Choose], max_tries: int) -> list[Rule]:
    """One way over all prices, a rule for each training seed."""
    return [
        Rule(name, tuple(stopped(here, *choose(price), max_tries, price) for price in PRICES)) for choose in choices
    ]


def pictures(table: RewardTable, judge: str, costs: np.ndarray) -> Pictures:
    """A table's, judged."""
    return Pictures(table.choices, table.judged_by(judge).quality, table.quality, costs)


def compare(setup: Setup, seeds: int) -> dict[str, list[Rule]]:
    """Every way, by name; seeds: of training, a rule each."""
    learned, held_out, judge = setup.learned, setup.held_out, setup.judge
    tries, features = learned.table.num_seeds, held_out.features
    table = held_out.table.ordered(learned.table.choices)
    plain = heads_of(learned, judge)
    here, known = (pictures(each, judge, plain.costs) for each in (table, learned.table))
    bars = one_bar(here, known.seen, tries)
    corners = hull_corners(one_bar(known, known.seen, tries).points)
    found = {"one bar for all": [Rule(bars.name, tuple(bars.points[at] for at in corners))]}
    found["bars by prompt, one recipe"] = rule("", here, [one_offer(plain, learned.features, features, tries)], tries)
    found[HEADS] = rule("", here, [by_offers(plain, features, tries)], tries)
    for name, by_prompt in (("heads and REINFORCE", True), ("REINFORCE from the mean", False)):
        made = [corrected(setup, seed, by_prompt) for seed in range(seeds)]
        said = ", ".join(f"{each.correction.scale:g}" for each in made if each.correction)
        print(f"{name}: scales {said}", file=sys.stderr, flush=True)
        found[name] = rule("", here, [by_offers(each, features, tries) for each in made], tries)
        full = [replace(each, correction=each.correction and replace(each.correction, scale=1.0)) for each in made]
        found[f"{name}, in full"] = rule("", here, [by_offers(each, features, tries) for each in full], tries)
    return found


def at_cost(rules: Sequence[Rule], cost: float) -> Point | None:
    """Mean over training seeds at a mean cost; None where one does not reach it."""
    points = [point for each in rules if (point := mixture_at(each.points, cost)) is not None]
    if len(points) < len(rules):
        return None
    quality, spent, steps = (
        np.mean([getattr(point, name) for point in points], axis=0) for name in ("quality", "cost", "steps")
    )
    return Point(cost, quality, spent, steps)


def mean_over_costs(rules: Sequence[Rule], costs: Sequence[float]) -> Point:
    """Of those costs that it reaches: mean quality of each prompt."""
    points = [point for cost in costs if (point := at_cost(rules, cost)) is not None]
    return Point(0.0, np.mean([p.quality for p in points], axis=0), points[0].cost, points[0].steps)


def result_table(found: dict[str, list[Rule]], costs: Sequence[float] = NAMED_COSTS) -> str:
    """A line a way: mean quality at each cost, spread over seeds, gain over offers by heads, mean over the costs."""
    shared = [cost for cost in costs if all(at_cost(rules, cost) is not None for rules in found.values())]
    baseline = mean_over_costs(found[HEADS], shared)
    bootstrap = Bootstrap(len(baseline.quality))
    head = " ".join(f"{cost:>7g}" for cost in shared)
    lines = [f"{'way':<34} {head}  {'seeds':>6}  mean gain over offers by heads"]
    for name, rules in found.items():
        points = [at_cost(rules, cost) for cost in shared]
        cells = " ".join(f"{point.mean_quality:7.4f}" for point in points if point)
        each = [mean_over_costs([one], shared).mean_quality for one in rules]
        gain: Interval = difference(mean_over_costs(rules, shared), baseline, bootstrap)
        lines.append(f"{name:<34} {cells}  {np.std(each):6.4f}  {gain:+.4f}")
    return "\n".join(lines)


def main() -> int:
    """-> the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of each way")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    job = load_job(options.job)
    table = whole_table(job, "output.path", table_run(job))
    judged = whole_table(job, "evaluate.table", rollout_run(job, "evaluate.table"))
    judge = job.config.evaluate.judge or unseen_judge(job, judged)
    if judge is None:
        raise job.fault("evaluate.judge", "name a scorer of weight 0 that is to judge")
    encoder, given = PromptEncoder(settings.model_source(job).local()), job.config.train
    learned, held_out = (Read(each, encoder.embed(each.prompts)) for each in (table, judged))
    learning = hyperparameters_of(given, table)
    setup = Setup(learned, held_out, judge, learning, given.width, given.held_out)
    print(result_table(compare(setup, options.seeds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
