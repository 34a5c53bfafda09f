"""What kinds of campaigns there are: the pools of their jobs, their cluster, and what is done to them.

All of them have storage faults, and one to three acts drawn from those that a kind names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.chaos import ACTS
from tests.clusters import LATE, Autoscaled, Cluster

Turns = Callable[[int], tuple[str, ...]]  # seed -> acts that are done for sure
SPOT, FEW, GPU = "resources: {spot: 1}", "resources: {late: 1}", "num_gpus: 1"
CUTS = ("cut_driver", "cut_worker", "cut_ledger", "cut_raylet")
STOPS = ("raylet_stop", "raylet_stop_long", "node_stop", "node_stop_long")


def pool(name: str, budgets: str = "all", actors: int | str = "ACTORS", place: str = SPOT) -> str:
    """One of a job's, in YAML. ACTORS is one or two, by seed."""
    return f"{{name: {name}, budgets: {budgets}, actors: {actors}, lanes: 8, {place}}}"


def turns(*acts: tuple[str, ...]) -> Turns:
    """One after the other, seed by seed."""
    return lambda seed: acts[seed % len(acts)]


def nothing(seed: int) -> tuple[str, ...]:
    """Beside what is drawn."""
    return ()


def _of_old(seed: int) -> tuple[str, ...]:
    """Every tenth seed loses a raylet too, every seventh the whole server."""
    return ("raylet",) * (seed % 10 == 0) + ("power",) * (seed % 7 == 3)


@dataclass(frozen=True)
class Kind:
    """pools: of the job, one tuple after the other by seed; steps: of the rows, in turn, None: the job's 2.

    Beside what is drawn from acts, at_start is done before the first driver, at_plan in the moment in which it writes
    the plan, always at some request of it, and while_rendering when shards are begun, by it or by a later driver.
    other_classes: rows may end in another render class than those of the undisturbed run. more: lines of the job file.
    """

    about: str
    pools: tuple[tuple[str, ...], ...] = ((pool("default"),),)
    steps: tuple[int | None, ...] = (3, None, None)
    at_start: Turns = nothing
    at_plan: str = ""
    always: Turns = nothing
    while_rendering: Turns = nothing
    acts: tuple[str, ...] = ACTS
    cluster: Callable[[], Cluster] = Cluster
    other_classes: bool = False
    more: str = ""  # lines of the job file


TRIES = 'quality: [{scorer: "tests.plans:brightness"}]\ntries: {max: 3, bar: 143}'
OLD = "one pool"
KINDS = {
    OLD: Kind("kills, signals and stops; in some seeds a raylet or the whole server is lost", always=_of_old),
    "pools": Kind(
        "two and three pools, with budgets apart and overlapping, and with more actors than places",
        pools=(
            (pool("short", "[2]"), pool("long", "[3, 4]", 2)),
            (pool("low", "[2, 3]"), pool("high", "[3, 4]")),
            (pool("every"), pool("long", "[4]")),
            (pool("two", "[2]"), pool("three", "[3]"), pool("four", "[4]")),
            (pool("low", "[2, 3]"), pool("high", "[3, 4]"), pool("ends", "[2, 4]")),
            (pool("two", "[2]", 2), pool("three", "[3]", 2), pool("four", "[4]", 2)),
        ),
        steps=(3, None, 4),
        while_rendering=turns(("actor",), ("raylet",), ("ledger", "actor_stop")),
    ),
    "late pool": Kind(
        "the one node of a pool is lost when the plan is written, and is there again a minute later",
        pools=(
            (pool("late", "[3]", place=FEW), pool("early", "[2]")),
            (pool("late", "[2, 3]", place=FEW), pool("early", "[2]")),
            (pool("late", place=FEW),),
        ),
        at_plan="late",
        cluster=partial(Cluster, LATE),
    ),
    "autoscaled": Kind(
        "nodes are launched for actors, given back when idle, and killed",
        pools=(
            (pool("gpus", actors=2, place=GPU),),
            (pool("short", "[2]", 1, GPU), pool("long", "[3]", 1, GPU)),
        ),
        while_rendering=turns(("raylet",)),
        acts=(*ACTS, "raylet"),
        cluster=Autoscaled,
    ),
    "broken device": Kind(
        "the device of a node, or of two, is lost after some calls, to each process there, until it is replaced",
        pools=((pool("default", actors=2),),),
        while_rendering=turns(("device",), ("device", "device")),
    ),
    "memory": Kind(
        "out of memory in UNet, decoder and packing, and in closing; the kernel kills the workers of one shard",
        at_start=turns(("oom_decode", "oom_unet"), ("oom_kill", "oom_close"), ("oom_pack", "oom_decode")),
        other_classes=True,
    ),
    "drained": Kind(
        "a node is drained, as a cloud takes it back, and replaced later",
        pools=((pool("default", actors=2),), (pool("short", "[2]"), pool("long", "[3]"))),
        while_rendering=turns(("drain",), ("drain", "drain")),
        acts=(*ACTS, "drain"),
    ),
    "tries": Kind(
        "rows are tried again with other seeds; kills, signals and stops as in one pool",
        pools=((pool("default", actors=2),), (pool("short", "[2]"), pool("long", "[3]"))),
        while_rendering=turns(("process",), ("actor",), ("ledger",), ("actor_stop",)),
        more=TRIES,
    ),
    "stopped node": Kind(
        "a raylet, or all of its node, stands still and wakes, in some seeds after it was taken for dead",
        pools=((pool("default", actors=2),),),
        while_rendering=turns(*((stop,) for stop in STOPS)),
    ),
    "cut connection": Kind(
        "all TCP connections of the driver, a worker, the ledger or a raylet are cut",
        pools=((pool("default", actors=2),), (pool("short", "[2]"), pool("long", "[3]"))),
        while_rendering=turns(*((cut, *CUTS[:2]) for cut in CUTS)),
        acts=(*ACTS, *CUTS),
    ),
}
BOTH = ((pool("short", "[2]"), pool("long", "[3]")),)
CONTROLS = {  # they lie, and the judge must see it
    "noise": Kind("a worker whose device is broken commits noise, and does not say so", at_start=turns(("noise",))),
    "swap": Kind("a worker gives rows each other's pictures", at_start=turns(("swap",))),
    "short": Kind("a worker commits a shard without its last row", at_start=turns(("short",))),
    "forget": Kind("the dispatch forgets the shards of a pool", pools=BOTH, at_start=turns(("forget",))),
}
