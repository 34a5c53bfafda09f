"""Describes a pool of equal render actors: what one actor asks Ray for, and which step budgets it serves.

This file alone says which pool serves a row. The actors themselves are in `pipelines.render.pool`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PoolSpec:
    """A pool of the job file. budgets None: all. actors: at most. num_gpus None: 1 where this Ray has GPUs, else 0."""

    name: str = "default"
    budgets: tuple[int, ...] | None = None
    actors: int = 1
    num_gpus: float | None = None
    num_cpus: float = 1
    lanes: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def request(self) -> dict[str, float]:
        """What one actor asks Ray for."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus or 0.0, **self.resources}
        return {name: amount for name, amount in wanted.items() if amount}

    @property
    def wants(self) -> str:
        """What one actor asks for, in words."""
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.request.items())
        return f"an actor of pool {self.name} ({each or 'no resources'})"

    def serves(self, budgets: Collection[int]) -> bool:
        """Whether its actors render rows of every one of these numbers of steps."""
        return self.budgets is None or set(budgets) <= set(self.budgets)


def serving(pools: Iterable[PoolSpec], *budgets: int) -> tuple[str, ...]:
    """The names of the pools that serve all of these numbers of steps."""
    return tuple(pool.name for pool in pools if pool.serves(budgets))


def served_budgets(pools: Iterable[PoolSpec]) -> frozenset[int] | None:
    """The numbers of steps that some pool serves; None: all."""
    named = [pool.budgets for pool in pools]
    return None if None in named else frozenset(count for budgets in named for count in budgets or ())


def menu_faults(choices: Iterable[int], pools: Iterable[PoolSpec], pinned: frozenset[int]) -> list[str]:
    """What is wrong between a menu and the pools: budgets that no pool serves, pools that serve none of them.

    A pool for budgets that only rows pin is no mistake.
    """
    menu, pools = sorted(set(choices)), tuple(pools)
    unserved = [str(count) for count in menu if not serving(pools, count)]
    idle = [p.name for p in pools if p.budgets is not None and not set(p.budgets) & pinned.union(menu)]
    faults = []
    if unserved:
        faults.append(
            f"no pool serves {', '.join(unserved)} steps: add them to a pool's budgets, or budgets: all to one"
        )
    if idle:
        faults.append(
            f"pool {', '.join(idle)} serves none of the budgets {', '.join(map(str, menu))}: correct its budgets"
        )
    return faults
