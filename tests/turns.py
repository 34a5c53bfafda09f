"""Threads that take turns: one runs at a time, and at each byte-code of the code under test it is chosen who is next.

`threading.Lock` is replaced, and with it all that is made of locks: conditions, futures, queues, executors. So a thread
that waits is known to wait, and where nobody can go on that is seen at once, without a timeout.
"""

import _thread
import gc
import logging
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from types import CodeType, FrameType
from typing import Any, Protocol
from unittest.mock import patch

REAL_S = 120.0  # for what should never happen: a thread that blocks in something that is not the scheduler's
EXPIRIES = 200  # of timeouts and sleeps in a row, while nobody else can go on: then nobody ever will
_REAL_THREAD, _REAL_SLEEP = threading.Thread, time.sleep


class Over(BaseException):
    """Unwinds a thread that is left over. No `except Exception` holds it."""


class Stuck(AssertionError):
    """Nobody can go on."""


class Choice(Protocol):
    """Who is next."""

    def stays(self) -> bool:
        """Whether the running thread goes on, where it can."""

    def is_spent(self) -> bool:
        """Whether it always does from now on."""

    def wakes(self) -> bool:
        """Whether who sleeps or has a timeout may be chosen beside those that can go on."""

    def pick(self, number: int, may_stay: bool) -> int:
        """One of so many threads; may_stay: the first is the running one."""


class Drawn:
    """By seed: another thread at this share of the byte-codes."""

    def __init__(self, seed: int, share: float = 0.2) -> None:
        self._draw, self._share = random.Random(seed), share

    def stays(self) -> bool:
        return self._draw.random() >= self._share

    def is_spent(self) -> bool:
        return False

    def wakes(self) -> bool:
        return self._draw.random() < 0.02

    def pick(self, number: int, may_stay: bool) -> int:
        return self._draw.randrange(number)


class Every:
    """One run after the other, all schedules in which a thread that could go on is stopped at most so many times."""

    def __init__(self, preemptions: int) -> None:
        self._bound, self._path = preemptions, list[list[int]]()  # chosen, of how many
        self._at = self._spent = 0

    def schedules(self) -> Iterator[None]:
        """Depth first; whoever iterates runs the same thing each time."""
        while True:
            self._at = self._spent = 0
            yield
            assert self._at == len(self._path), "the runs are not alike"
            while self._path and self._path[-1][0] + 1 == self._path[-1][1]:
                self._path.pop()
            if not self._path:
                return
            self._path[-1][0] += 1

    def stays(self) -> bool:
        return self.is_spent()

    def is_spent(self) -> bool:
        return self._spent >= self._bound

    def wakes(self) -> bool:
        return False

    def pick(self, number: int, may_stay: bool) -> int:
        if number == 1:
            return 0
        if self._at == len(self._path):
            self._path.append([0, number])
        chosen, of = self._path[self._at]
        assert of == number, "the runs are not alike"
        self._at += 1
        self._spent += may_stay and chosen > 0
        return chosen


class Lock:
    """A threading.Lock whose waiters are known."""

    def __init__(self, turns: "Turns") -> None:
        self._turns, self.held = turns, False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self._turns.switch()
        while self.held and not self._turns.over:
            if not blocking or timeout == 0 or not self._turns.wait(self, timed=timeout > 0):
                return False
        self.held = True
        return True

    def release(self) -> None:
        assert self.held or self._turns.over
        self.held = False
        self._turns.switch()

    def locked(self) -> bool:
        return self.held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Thread:
    """A threading.Thread that takes its turns."""

    def __init__(
        self,
        turns: "Turns",
        target: Callable[..., Any] | None = None,
        name: str = "thread",
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        daemon: bool | None = None,
    ) -> None:
        self._turns, self._call = turns, lambda: target(*args, **(kwargs or {})) if target else None
        self.name, self.daemon = name, daemon
        self.waits_for: Lock | None = None
        self.timed = self.expired = self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.ident, self.ending = 0, Lock(turns)
        self.baton, self.gone = _thread.allocate_lock(), _thread.allocate_lock()
        self.ending.held = self.baton.acquire() and self.gone.acquire()

    def start(self) -> None:
        self._turns.threads.append(self)
        self.ident = _thread.start_new_thread(self._live, ())

    def is_alive(self) -> bool:
        return not self.ended

    def join(self, timeout: float | None = None) -> None:
        with self.ending if timeout is None else ExitStack():
            pass

    def _live(self) -> None:
        self._turns.await_baton(self)
        try:
            if not self._turns.over:
                sys.settrace(self._turns.trace)
                self.result = self._call()
        except Over:
            pass
        except BaseException as error:  # noqa: BLE001 - the thread's result
            if not self._turns.over:
                self.error = error
        finally:
            sys.settrace(None)
            self._turns.end(self)
            self.gone.release()


class Turns:
    """`with turns:` builds what is tested, with locks of the scheduler; `run` lets acts run in threads of their own.

    traced: functions and classes at whose byte-codes the threads are switched; elsewhere it is at locks alone.
    points: at which another thread could have been chosen; switches: at which it was.
    """

    def __init__(self, choice: Choice, traced: Iterable[Any]) -> None:
        self._choice, self._traced = choice, set(chain.from_iterable(map(_codes, traced)))
        self.threads: list[Thread] = []
        self._acts: list[Thread] = []
        self._running: Thread | None = None
        self._finished = _thread.allocate_lock()
        self._patches, self._builder = ExitStack(), _thread.get_ident()
        self._expiries = 0
        self.over, self.stuck = False, ""
        self.points = self.switches = 0

    def __enter__(self) -> "Turns":
        self._patches.__enter__()
        names = {"Lock": self.lock, "_allocate_lock": self.lock, "RLock": threading._PyRLock, "Thread": self.thread}
        self._patches.enter_context(patch.multiple(threading, **names))
        self._patches.enter_context(patch.object(queue, "SimpleQueue", queue._PySimpleQueue))
        self._patches.enter_context(patch.object(time, "sleep", self.sleep))
        self._patches.enter_context(patch("concurrent.futures.thread._global_shutdown_lock", self.lock()))
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        self._patches.close()

    def lock(self) -> Any:
        """Other threads of this process go on with locks of their own."""
        return Lock(self) if self._is_own() else _thread.allocate_lock()

    def thread(self, *args: Any, **kwargs: Any) -> Any:
        return Thread(self, *args, **kwargs) if self._is_own() else _REAL_THREAD(*args, **kwargs)

    def sleep(self, seconds: float) -> None:
        """Somebody else is next, while there is anybody."""
        if self._me() is None:
            _REAL_SLEEP(seconds)
        else:
            never = Lock(self)
            never.held = True
            self.wait(never, timed=True)

    def run(self, *acts: Callable[[], Any]) -> list[Any]:
        """-> what they return. Raises what an act or a thread of theirs raised, and Stuck."""
        self._acts = [Thread(self, act, getattr(act, "__name__", "act")) for act in acts]
        for act in self._acts:
            act.start()
        collects, logs = gc.isenabled(), logging.root.manager.disable
        gc.disable()  # what a collection runs would have its turns, too
        logging.disable()  # a record asks for the name of its thread, which is none of threading's own
        self._finished.acquire()
        self._hand_to(self._next(None))
        in_time = self._finished.acquire(timeout=REAL_S)
        self.over = True
        for thread in self.threads:
            thread.baton.release()
        for thread in self.threads:
            in_time = thread.gone.acquire(timeout=REAL_S if in_time else 1) and in_time
        logging.disable(logs)
        if collects:
            gc.enable()
        assert in_time, "a thread waits for something that is not the scheduler's"
        if self.stuck:
            raise Stuck(self.stuck)
        for thread in self.threads:
            if thread.error is not None:
                raise thread.error
        return [act.result for act in self._acts]

    def switch(self) -> None:
        """Perhaps somebody else is next."""
        if (me := self._me()) is not None:
            self.points += 1
            if not self._choice.stays():
                self._pass_on(me)

    def wait(self, lock: Lock, timed: bool) -> bool:
        """Somebody else is next until the lock is free. False: the time was over first."""
        me = self._me()
        assert me is not None, "who builds and checks must not have to wait"
        me.waits_for, me.timed, me.expired = lock, timed, False
        try:
            self._pass_on(me)
        finally:
            me.waits_for, me.timed = None, False
        return not me.expired

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code not in self._traced:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._trace_each

    def _trace_each(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            self.switch()
            if self._choice.is_spent() and not self.over:
                sys.settrace(None)  # from here on byte-codes decide nothing
        return self._trace_each

    def _is_own(self) -> bool:
        mine = _thread.get_ident()
        return mine == self._builder or any(mine == thread.ident for thread in self.threads)

    def _me(self) -> Thread | None:
        """Who calls, where it is a thread that takes turns. Raises Over where there are no more."""
        mine = _thread.get_ident()
        if self.over and any(mine == thread.ident for thread in self.threads):
            raise Over
        return self._running if self._running and mine == self._running.ident and not self.over else None

    def _pass_on(self, me: Thread) -> None:
        chosen = self._next(me)
        if chosen is None:
            self._stop()
        elif chosen is not me:
            self.switches += 1
            self._hand_to(chosen)
            self.await_baton(me)
        if self.over:
            raise Over

    def _next(self, me: Thread | None) -> Thread | None:
        waiting = [thread for thread in self.threads if not thread.ended and thread.waits_for and thread.waits_for.held]
        ready = [thread for thread in self.threads if not thread.ended and thread not in waiting]
        timed = [thread for thread in waiting if thread.timed]
        may_stay = me in ready
        if may_stay:
            ready.remove(me)
            ready.insert(0, me)
        if not all(thread.expired for thread in ready):
            self._expiries = 0
        if ready and not (timed and self._choice.wakes()):
            return ready[self._choice.pick(len(ready), may_stay)]
        self._expiries += 1
        if not timed or self._expiries > EXPIRIES:
            self.stuck = "; ".join(f"{thread.name} waits in {self._place(thread)}" for thread in waiting)
            return None
        first = timed[0]
        first.expired = True
        self.threads.remove(first)  # the next time it is another's turn to wake
        self.threads.append(first)
        return first

    def _hand_to(self, chosen: Thread | None) -> None:
        assert chosen is not None
        self._running = chosen
        chosen.baton.release()

    def await_baton(self, me: Thread) -> None:
        assert me.baton.acquire(timeout=REAL_S)

    def end(self, thread: Thread) -> None:
        """It has returned: its joiners go on, and the run is over with the last act."""
        thread.ended = True
        thread.ending.held = False
        if self.over:
            return
        if all(act.ended for act in self._acts):
            self._stop()
        elif (chosen := self._next(None)) is not None:
            self.switches += 1
            self._hand_to(chosen)
        else:
            self._stop()

    def _stop(self) -> None:
        self.over = True
        self._finished.release()

    def _place(self, thread: Thread) -> str:
        frame = sys._current_frames().get(thread.ident)
        while frame is not None and frame.f_code not in self._traced:
            frame = frame.f_back
        return f"{frame.f_code.co_qualname}, line {frame.f_lineno}" if frame else "no traced code"


def _codes(traced: Any) -> Iterator[CodeType]:
    """Of a function, a property, or all of a class; with what is defined inside them."""
    if isinstance(traced, CodeType):
        yield traced
        yield from chain.from_iterable(map(_codes, traced.co_consts))
    elif isinstance(traced, type):
        yield from chain.from_iterable(map(_codes, vars(traced).values()))
    elif isinstance(traced, staticmethod | property):
        yield from _codes(traced.__func__ if isinstance(traced, staticmethod) else traced.fget)
    elif hasattr(traced, "__code__"):
        yield from _codes(traced.__code__)
