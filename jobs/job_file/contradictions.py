"""Finds keys of a job file that contradict each other."""

from collections.abc import Iterable, Iterator, Sequence

from jobs.job_file.keys import JobConfig, Pool, step_count

PAPER_CHOICES = tuple(range(5, 51, 5))  # as actors.selector has them; that module is not imported for a `--help`
Contradiction = tuple[list[tuple[str | int, ...]], str]


def contradictions(config: JobConfig) -> Iterator[Contradiction]:
    """(the keys that disagree, the one to change first; what is wrong and the remedy)."""
    yield from _selector(config)
    yield from _bounds(config)
    yield from _pools(config)
    yield from _train(config)
    yield from _tries(config)
    if known := known_choices(config):
        yield from unserved(config.pools, known)


def known_choices(config: JobConfig) -> tuple[int, ...]:
    """The numbers of steps that the job file allows, after min and max; () where only the policy file knows them."""
    steps = config.steps
    if steps.selector == "fixed":
        return (step_count(steps.fixed),) if steps.fixed else ()
    if steps.choices is None and steps.selector == "policy":
        return ()
    counts = sorted({step_count(choice) for choice in steps.choices or PAPER_CHOICES})
    return within_bounds(config, counts)


def within_bounds(config: JobConfig, counts: Iterable[int]) -> tuple[int, ...]:
    """The numbers of steps that steps.min and steps.max leave."""
    steps = config.steps
    return tuple(n for n in counts if (steps.min or 1) <= n <= (steps.max or n))


def unserved(pools: Sequence[Pool], choices: Sequence[int]) -> Iterator[Contradiction]:
    """Budgets that no pool serves."""
    budgets = [set(choices) if pool.budgets == "all" else set(pool.budgets) for pool in pools]
    if missing := sorted(set(choices).difference(*budgets)):
        listed = ", ".join(map(str, missing))
        yield [("pools",), ("steps",)], f"no pool serves the budgets {listed}: add them to a pool, or `budgets: all`"


def idle(pools: Sequence[Pool], budgets: Iterable[int]) -> Iterator[Contradiction]:
    """Pools that serve none of the budgets there are, of the menu or pinned by a row."""
    known = sorted(set(budgets))
    for index, pool in enumerate(pools):
        if pool.budgets != "all" and not set(pool.budgets) & set(known):
            listed = ", ".join(map(str, known))
            yield (
                [("pools", index, "budgets"), ("steps",)],
                f"the pool {pool.name!r} serves no budget of this job ({listed}): remove it or correct its budgets",
            )


def _selector(config: JobConfig) -> Iterator[Contradiction]:
    steps = config.steps
    if steps.selector == "fixed" and steps.fixed is None:
        yield (
            [("steps", "selector"), ("steps", "fixed")],
            "steps.selector: fixed needs steps.fixed, its number of steps or recipe",
        )
    if steps.fixed is not None and "selector" not in steps.model_fields_set:
        yield [("steps", "fixed"), ("steps", "selector")], "steps.fixed needs steps.selector: fixed"


def _bounds(config: JobConfig) -> Iterator[Contradiction]:
    steps = config.steps
    low, high = steps.min or 1, steps.max or 1000
    keys: list[tuple[str | int, ...]] = [("steps", "min" if steps.min else "max"), ("steps", "max"), ("steps", "min")]
    if low > high:
        yield keys, f"steps.min {low} is above steps.max {high}"
    elif steps.selector == "fixed" and steps.fixed and not low <= step_count(steps.fixed) <= high:
        yield [*keys, ("steps", "fixed")], f"steps.fixed {steps.fixed} lies outside steps.min {low} to steps.max {high}"
    elif steps.selector != "fixed" and steps.choices and not any(low <= step_count(n) <= high for n in steps.choices):
        yield [*keys, ("steps", "choices")], f"none of steps.choices lies between steps.min {low} and steps.max {high}"


def _tries(config: JobConfig) -> Iterator[Contradiction]:
    tries = config.tries
    if tries.max == 1 or (config.safety and not config.quality and tries.bar == "auto"):
        return  # in the second case only pictures that are not safe are tried again
    if tries.bar == "auto" and config.steps.selector != "policy":
        remedy = "give tries.bar a number, or {quantile: 0.4} and tries.scores"
        yield [("tries", "bar"), ("tries", "max")], f"tries.bar: auto needs steps.selector: policy; else {remedy}"
    if not isinstance(tries.bar, str | float) and tries.scores is None:
        remedy = "name a run folder whose pictures were scored, for example a pilot's"
        yield [("tries", "scores"), ("tries", "bar")], f"tries.bar: a quantile needs tries.scores: {remedy}"
    if not config.counts_quality:
        yield [("tries", "max"), ("quality",)], "tries.max needs a scorer that counts: set quality"
    if any(scorer.weight and scorer.scorer == "fidelity" for scorer in config.quality):
        yield (
            [("quality",), ("tries", "max")],
            "fidelity compares budgets of a rollout and judges no try: give it weight 0",
        )
    if tries.keep and config.output.layout != "files":
        yield [("tries", "keep"), ("output", "layout")], "tries.keep needs output.layout: files"


def _train(config: JobConfig) -> Iterator[Contradiction]:
    train = config.train
    if train.width % train.heads:
        keys: list[tuple[str | int, ...]] = [("train", "width"), ("train", "heads")]
        yield keys, f"train.width {train.width} is no multiple of train.heads {train.heads}"
    if train.recipe == "stepthrift" and train.baseline == "leave_one_out" and train.samples < 2:
        yield (
            [("train", "samples"), ("train", "baseline")],
            "train.baseline: leave_one_out needs train.samples of 2 or more",
        )


def _pools(config: JobConfig) -> Iterator[Contradiction]:
    names = [pool.name for pool in config.pools]
    for index, pool in enumerate(config.pools):
        if pool.name in names[:index]:
            yield [("pools", index, "name")], f"two pools are named {pool.name!r}: names are unique"
