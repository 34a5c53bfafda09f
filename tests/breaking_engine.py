"""What breaks on purpose inside the processes of a run, in render workers and in their children alike; tokens say what.

A token is a file in a folder that all these processes see; who takes it, breaks once. Nothing of the product knows.
"""

import importlib.abc
import importlib.util
import os
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER_ENV, NODE_ENV = "STEPTHRIFT_BREAKS", "STEPTHRIFT_BREAKS_NODE"
HOOK = Path(__file__).parent / "breaking"  # on PYTHONPATH, before the project
LIES = ("noise", "swap", "short", "forget")
FORGOTTEN = "long"
DEADLY_ROW = "r004"  # the process that gets it is killed, while there are tokens for that


@dataclass(frozen=True)
class Tokens:
    """unet, decode: out of memory in such a call; close_unet, close_decode: in one after `close`; pack: in packing.

    kill: the process ends, as by the kernel's out-of-memory killer, when it gets DEADLY_ROW.

    The others are lies, that the judge must see. noise: a worker whose pictures are noise from then on; swap: one whose
    rows get each other's pictures; short: a manifest without its last row; forget: no shard of pool FORGOTTEN is seen.
    """

    folder: Path

    def give(self, name: str, count: int) -> None:
        """So many processes, or calls, will break."""
        for _ in range(count):
            (self.folder / f"{name}.{secrets.token_hex(4)}").touch()

    def take(self, name: str) -> bool:
        """Whether there was one: each is taken once, whoever asks."""
        for token in self.folder.glob(f"{name}.*"):
            with suppress(FileNotFoundError):
                token.unlink()
                with (self.folder / "taken").open("a") as file:
                    file.write(f"{name}\n")
                return True
        return False

    def lose_device(self, node: str, calls: int) -> None:
        """After so many UNet calls each further one on that node raises, in every process."""
        self.device(node).write_text(str(calls))

    def device(self, node: str) -> Path:
        """The calls that are left to it."""
        return self.folder / f"{node}.doomed"

    def mend(self) -> None:
        """New devices, and memory for all; lies stay."""
        for path in self.folder.iterdir():
            if path.name != "taken" and path.name.partition(".")[0] not in LIES:
                path.unlink(missing_ok=True)

    def done(self) -> Counter[str]:
        """What broke so far."""
        taken = self.folder / "taken"
        found = Counter(f"out of memory: {name}" for name in taken.read_text().split()) if taken.exists() else Counter()
        lost = sum(path.read_text() == "0" for path in self.folder.glob("*.doomed"))
        return found + Counter({"device lost": lost})


def break_when_imported() -> None:
    """Each module, once this process imports it."""
    tokens = Tokens(Path(os.environ[FOLDER_ENV]))
    for name, then in (
        ("actors.sampler", lambda _: break_engine(tokens)),
        ("pipelines.render.sink", lambda sinks: break_packing(sinks.Sink, tokens)),
        ("pipelines.run.layout", lambda store: break_commit(store.RunFolder, tokens)),
        ("pipelines.render.pool", lambda pools: break_plan(pools, tokens)),
    ):
        sys.meta_path.insert(0, _AfterImport(name, then))


def break_engine(tokens: Tokens) -> None:
    """From now on, in this process."""
    import torch

    from actors.diffusion import Diffusion
    from actors.sampler import DDIMSampler
    from tests.breaking_workers import lose_device

    honest, state = {each: getattr(Diffusion, each) for each in ("predict", "decode")}, Counter[str]()

    def check_memory(call: str) -> None:
        if tokens.take(call) or (state["closing"] and tokens.take(f"close_{call}")):
            raise torch.OutOfMemoryError("CUDA out of memory")

    def predict(self: Any, *inputs: Any) -> torch.Tensor:
        check_memory("unet")
        state["noise"] += tokens.take("noise")
        output = honest["predict"](self, *inputs)
        return torch.randn_like(output) if state["noise"] else output

    def decode(self: Any, latents: torch.Tensor) -> Any:
        if len(latents) > 1:  # not the probe, whose lack of memory proves nothing
            check_memory("decode")
            state["swap"] += tokens.take("swap")
        return honest["decode"](self, latents.roll(1, 0) if state["swap"] else latents)

    def submit(self: Any, row: Any, honest: Callable[..., Any] = DDIMSampler.submit) -> Any:
        if row.id == DEADLY_ROW and tokens.take("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, row)

    def close(self: Any, honest: Callable[..., Any] = DDIMSampler.close) -> None:
        state["closing"] += 1
        honest(self)

    Diffusion.predict, Diffusion.decode = predict, decode  # type: ignore[method-assign]
    DDIMSampler.submit, DDIMSampler.close = submit, close  # type: ignore[method-assign]
    lose_device(tokens.device(_this_node()))


def break_packing(sink: Any, tokens: Tokens) -> None:
    """The class Sink."""

    def close(self: Any, honest: Callable[..., Any] = sink.close) -> Any:
        if tokens.take("pack"):
            raise MemoryError("no memory to pack the shard's pictures")
        return honest(self)

    sink.close = close


def break_commit(run_folder: Any, tokens: Tokens) -> None:
    """The class RunFolder."""

    def commit(self: Any, shard: str, table: Any, honest: Callable[..., Any] = run_folder.commit_manifest) -> Any:
        return honest(self, shard, table[:-1] if tokens.take("short") else table)

    run_folder.commit_manifest = commit


def break_plan(pools: Any, tokens: Tokens) -> None:
    """The module of the pools, before the ledger and the driver take their shards from it."""
    if not any(tokens.folder.glob("forget.*")):
        return

    def seen(*args: Any, honest: Callable[..., Any] = pools.planned_shards, **options: Any) -> Any:
        return [shard for shard in honest(*args, **options) if shard.pools != (FORGOTTEN,)]

    pools.planned_shards = seen


def _this_node() -> str:
    """A worker's from Ray; its children inherit it."""
    import ray

    if ray.is_initialized():
        os.environ[NODE_ENV] = ray.get_runtime_context().get_node_id()
    return os.environ.get(NODE_ENV, "none")


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls `then` with a module, the first time that it was imported."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def and_then(module: ModuleType) -> None:
            execute(module)
            self.then(module)

        spec.loader.exec_module = and_then  # type: ignore[method-assign]
        return spec
