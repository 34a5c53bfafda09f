"""What a fault campaign does to its cluster, to its processes and their connections, its driver and its S3 server."""

import queue
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import psutil

from tests.breaking_engine import Tokens
from tests.clusters import LATE, Cluster, Driver, wake
from tests.connections import cut_connections
from tests.other_servers import Server

RENDERER, LEDGER, ANY = "RenderWorker", "LedgerActor", "ray::"
RAYLET_S = 60.0  # for a new one
LATE_S = 60.0  # how long a pool's one node is away
SHORT_S, LONG_S = (3.0, 10.0), (40.0, 70.0)  # stops that nobody notices, and some after which a node is taken for dead
TOKENS = {  # act: which tokens, and how many
    "oom_unet": (("unet", 2),),
    "oom_decode": (("decode", 2),),
    "oom_pack": (("pack", 2),),
    "oom_kill": (("kill", 3),),  # after three deaths the shard is isolated, and its child is closed while it renders
    "oom_close": (("close_unet", 1), ("close_decode", 1)),
    "noise": (("noise", 1),),
    "swap": (("swap", 1),),
    "short": (("short", 1),),
    "forget": (("forget", 1),),
}


@dataclass
class Chaos:
    """Acts against one campaign. done: what was done, in order; an act that found nobody says so."""

    cluster: Cluster
    server: Server
    chance: random.Random
    breaks: Tokens
    spared_ports: tuple[int, ...] = ()  # where a cut connection would be a fault of the store
    driver: Driver | None = None
    done: list[str] = field(default_factory=list)
    timers: list[threading.Timer] = field(default_factory=list)
    for_main: "queue.SimpleQueue[tuple[Callable[[], None], threading.Event]]" = field(default_factory=queue.SimpleQueue)

    def act(self, name: str) -> None:
        """One of ACTS or of the others that a kind of campaign names. What goes wrong in it is noted, too."""
        try:
            self.done.append(self._give(name) if name in TOKENS else getattr(self, f"_{name}")())
        except Exception as error:
            self.done.append(f"{name} (failed: {type(error).__name__})")
            raise

    def soon(self, *names: str) -> None:
        """Each of these acts within three seconds."""
        for name in names:
            self._later(self.chance.uniform(0.0, 3.0), partial(self.act, name))

    def counts(self) -> Counter[str]:
        """How often each act was done, and what broke in the engines."""
        return Counter(self.done) + self.breaks.done()

    def serve(self) -> None:
        """In the main thread, again and again: what only it can do, since Ray's nodes set signal handlers."""
        with suppress(queue.Empty):
            call, done = self.for_main.get_nowait()
            call()
            done.set()

    def settle(self) -> None:
        """Waits for what an act left under way."""
        while any(timer.is_alive() for timer in self.timers):
            self.serve()
            time.sleep(0.1)
        self.timers.clear()

    def _give(self, name: str) -> str:
        for token, count in TOKENS[name]:
            self.breaks.give(token, count)
        return name

    def _strike(self, text: str, number: int, name: str) -> str:
        found = self.cluster.processes(text)
        if not found:
            return f"{name} (nobody)"
        with suppress(psutil.NoSuchProcess):
            self.chance.choice(found).send_signal(number)
        return name

    def _actor(self) -> str:
        return self._strike(RENDERER, signal.SIGKILL, "actor")

    def _actor_term(self) -> str:
        return self._strike(RENDERER, signal.SIGTERM, "actor_term")

    def _actor_stop(self) -> str:
        """A worker that falls silent for a while: a zombie that wakes."""
        found = self.cluster.processes(RENDERER)
        if not found:
            return "actor_stop (nobody)"
        zombie, pause_s = self.chance.choice(found), self.chance.uniform(0.5, 3.0)
        with suppress(psutil.NoSuchProcess):
            zombie.suspend()
            self._later(pause_s, lambda: wake(zombie))
        return "actor_stop"

    def _process(self) -> str:
        return self._strike(ANY, signal.SIGKILL, "process")

    def _ledger(self) -> str:
        return self._strike(LEDGER, signal.SIGKILL, "ledger")

    def _raylet(self) -> str:
        place = self.cluster.choose(self.chance)
        self._in_main(lambda: self.cluster.replace(place))
        return "raylet"

    def _late(self) -> str:
        """The one node of a pool is gone before its actors came, and is there again a minute later."""
        place = self.cluster.resources.index(LATE)
        self._in_main(lambda: self.cluster.lose(place))
        self._later(LATE_S, lambda: self._in_main(lambda: self.cluster.replace(place)))
        return "late"

    def _drain(self) -> str:
        """A node is taken back by its cloud, and later there is another."""
        place, left_s = self.cluster.choose(self.chance), self.chance.uniform(5.0, 25.0)
        self.cluster.drain(place, 2 * left_s)
        self._later(left_s, lambda: self._in_main(lambda: self.cluster.replace(place)))
        return "drain"

    def _raylet_stop(self) -> str:
        return self._stop("raylet_stop", SHORT_S, with_workers=False)

    def _raylet_stop_long(self) -> str:
        """Its node is taken for dead while its workers go on."""
        return self._stop("raylet_stop_long", LONG_S, with_workers=False)

    def _node_stop(self) -> str:
        return self._stop("node_stop", SHORT_S, with_workers=True)

    def _node_stop_long(self) -> str:
        """A machine that stands still, and wakes when others have its work."""
        return self._stop("node_stop_long", LONG_S, with_workers=True)

    def _stop(self, name: str, pause_s: tuple[float, float], with_workers: bool) -> str:
        raylet = self.cluster.raylet(self.cluster.choose(self.chance))
        stopped = [raylet, *(raylet.children(recursive=True) if with_workers else ())]
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

        def wake_again() -> None:
            wake(*stopped)
            time.sleep(5.0)  # a raylet that hears that it is dead ends
            self._in_main(self.cluster.replace_dead)

        self._later(self.chance.uniform(*pause_s), wake_again)
        return name

    def _cut_driver(self) -> str:
        return self._cut("cut_driver", [psutil.Process(self.driver.process.pid)] if self.driver else [])

    def _cut_worker(self) -> str:
        return self._cut("cut_worker", self.cluster.processes(RENDERER))

    def _cut_ledger(self) -> str:
        return self._cut("cut_ledger", self.cluster.processes(LEDGER))

    def _cut_raylet(self) -> str:
        return self._cut("cut_raylet", [self.cluster.raylet(self.cluster.choose(self.chance))])

    def _cut(self, name: str, candidates: list[psutil.Process]) -> str:
        if not candidates:
            return f"{name} (nobody)"
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            return name if cut_connections(self.chance.choice(candidates), self.spared_ports) else f"{name} (none)"
        return f"{name} (nobody)"

    def _device(self) -> str:
        """From a few UNet calls on its device is lost to each process of a node, until somebody mends it."""
        node = self.cluster.node_id(self.cluster.choose(self.chance))
        self.breaks.lose_device(node, self.chance.randrange(8))
        return "device"

    def _driver_kill(self) -> str:
        return self._signal(signal.SIGKILL, "driver_kill")

    def _driver_term(self) -> str:
        return self._signal(signal.SIGTERM, "driver_term")

    def _driver_int(self) -> str:
        return self._signal(signal.SIGINT, "driver_int")

    def _signal(self, number: int, name: str) -> str:
        if self.driver:
            self.driver.send(number)
        return name

    def _server_kill(self) -> str:
        self.server.kill()
        self._later(self.chance.uniform(0.2, 2.0), self.server.restart)
        return "server_kill"

    def _power(self) -> str:
        self.server.kill(everything=True)
        self._later(self.chance.uniform(0.2, 1.0), self.server.restart)
        return "power"

    def _in_main(self, call: Callable[[], None]) -> None:
        asked = threading.Event()
        self.for_main.put((call, asked))
        if not asked.wait(RAYLET_S):
            raise TimeoutError("no new raylet")

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, act)
        timer.start()
        self.timers.append(timer)


ACTS = (
    "actor",
    "actor_term",
    "actor_stop",
    "process",
    "ledger",
    "driver_kill",
    "driver_kill",  # what a user does most: twice as likely
    "driver_term",
    "driver_int",
    "server_kill",
)
