"""Reads how far a run is from its folder: the plan, the manifests, and the last heartbeat of its driver."""

import math
import time
from collections.abc import Mapping, Set
from datetime import UTC, datetime
from typing import Any

from jobs.job_file.positions import ConfigError, Fault
from jobs.steps.find_run import find_job
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE, FAILED
from jobs.terminal.progress import duration, rate
from pipelines.render.open_shard import rendered_rows
from pipelines.run.drivers import EXPIRY_S, SAID, is_dead, last_record
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan

EVERY_S, ALL_S = 2.0, 30.0  # between two looks at the driver, and at plan and manifests
AT_WORK = "at work"
_SAID = {"done": "images", "total": "images_in_all"}  # names of a Progress, said here otherwise


def status_of(
    url: str,
    record: dict[str, Any] | None,
    sizes: Mapping[str, int],
    done: Set[str],
    now: datetime,
    begun: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What `--json` prints. record: the last driver's, read before `done` was; sizes: rows of each planned shard; done:
    shards with a manifest; begun: rows that a limit rendered of others.

    state: at work, done, silent (no heartbeat), killed, ended (before all was done), waiting (for a driver). rows_done:
    that are written down; images, of images_in_all: of this driver and those before it, by its last heartbeat.
    """
    told, state = (record or {}).get("progress") or {}, _state(record, now)
    found = {
        "run": url,
        "state": "done" if state != AT_WORK and sizes and sizes.keys() <= done else state,
        "rows": sum(sizes.values()),
        "rows_done": sum((sizes if shard in done else begun or {}).get(shard, 0) for shard in sizes),
        "shards": len(sizes),
        "shards_done": len(sizes.keys() & done),
        "driver": record and {name: record[name] for name in SAID},
    }
    names = ("done", "total", "failed", "images_per_second", "eta_s", "workers", "waiting")
    return found | {_SAID.get(name, name): told.get(name) for name in names}


def _state(record: dict[str, Any] | None, now: datetime) -> str:
    if record is None:
        return "waiting"
    if record["ended_at"]:
        return "ended"
    if is_dead(record):
        return "killed"
    return AT_WORK if _age(record, now) <= EXPIRY_S else "silent"


def _age(record: dict[str, Any], now: datetime) -> float:
    """Seconds since the last heartbeat, by this machine's clock."""
    return (now - datetime.fromisoformat(record["beat_at"])).total_seconds()


def status_text(found: dict[str, Any], now: datetime) -> str:
    """The same in a few lines."""
    share = 100 * found["rows_done"] / found["rows"] if found["rows"] else 0.0
    rows = f"{found['rows_done']:,} of {found['rows']:,} rows ({share:.0f} %) in {found['shards_done']:,} shards"
    lines = [f"{found['run']}: {found['state']}; {rows} of {found['shards']:,} are done"]
    driver = found["driver"]
    if driver:
        heard = duration(max(0.0, _age(driver, now)))
        when = f"ended {_clock(driver['ended_at'])}" if driver["ended_at"] else f"heartbeat {heard} ago"
        since = _clock(driver["started_at"])
        lines.append(f"driver: process {driver['pid']} on {driver['host']}, since {since}, {when}")
    if found["state"] == AT_WORK:
        lines += _at_work(found)
    elif found["state"] != "done":
        lines.append("nobody renders the rest: the command that began it goes on")
    return "\n".join(lines)


def _at_work(found: dict[str, Any]) -> list[str]:
    parts = []
    if found["images"] is not None:
        of = f" of {found['images_in_all']:,}" if found["images_in_all"] else ""
        parts.append(f"{found['images']:,}{of} images made, {found['failed'] or 0:,} failed")
    parts += [f"{rate(found['images_per_second'])} images/s"] if found["images_per_second"] else []
    parts += [f"about {duration(found['eta_s'])} left"] if found["eta_s"] else []
    parts += [f"{found['workers']} workers"] if found["workers"] else []
    lines = [", ".join(parts)] if parts else []
    return [*lines, found["waiting"]] if found["waiting"] else lines


def _clock(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def show_status(console: Console, run_path: str, watch: bool, sets: tuple[str, ...]) -> int:
    """Says it once, or until the run has ended; the exit code."""
    _, run = find_job(run_path, sets, planned=False)
    look, said = _Look(run), None
    found = look()
    if not found["rows"] and found["driver"] is None:
        raise ConfigError([Fault(run_path, f"nothing is planned in {run.url}: is it a run folder?")])
    while watch and found["state"] == AT_WORK:
        text, moved = status_text(found, _now()).replace("\n", " · "), (found["rows_done"], found["images"])
        if console.is_terminal:
            console.draw(text)
        elif moved != said:
            console.say(text)
        said = moved
        time.sleep(EVERY_S)
        found = look()
    console.clear()
    console.result(found, status_text(found, _now()))
    return DONE if found["state"] in ("done", AT_WORK) else FAILED


class _Look:
    """Looks at a run again and again: at its driver each time, at its plan and its manifests now and then."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._at = -math.inf  # when plan and manifests were read
        self._sizes: dict[str, int] = {}
        self._done: set[str] = set()
        self._begun: dict[str, int] = {}  # rows that a limit rendered of shards that are not done

    def __call__(self) -> dict[str, Any]:
        record, now = last_record(self.run), _now()  # first: of a driver that ended, all manifests are seen
        if time.monotonic() - self._at > ALL_S or _state(record, now) != AT_WORK:
            self._sizes = {entry["shard"]: entry["rows"] for _, entry in read_plan(self.run).shards("shard", "rows")}
            self._begun = {shard: len(rendered_rows(self.run, shard)) for shard in self.run.partly_done()}
            self._done, self._at = self.run.done_shards(), time.monotonic()
        return status_of(self.run.url, record, self._sizes, self._done, now, self._begun)


def _now() -> datetime:
    return datetime.now(UTC)
