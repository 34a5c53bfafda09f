"""A mutation run: a seeded sample of small changes to the code, each of which some test should notice.

cosmic-ray makes the changes, in an environment of its own. The tests run in forks of one process that has collected
them: a change inside a function is put into the function, so that nothing is imported again; any other gets a process
of its own. Files are changed as well, since some tests start processes: so it is done in a clone.

    python -m tests.mutants draw            # cosmic-ray's python -> mutants.json
    python -m tests.mutants run             # the project's; mutants.jsonl has what is done already, and goes on there
    python -m tests.mutants table
"""

import argparse
import ast
import difflib
import functools
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

SEED, SAMPLE = 17, 300
TEST_S = 75  # of one test, after which the mutant counts as killed
LIMIT_S = 600.0  # of all
DRAWN, RESULTS = Path("mutants.json"), Path("mutants.jsonl")
ENGINE = ["tests/test_lanes.py", "tests/test_clock.py", "tests/test_engine_health.py", "tests/test_sampler.py"]
WORKER = ["tests/test_interleavings.py", "tests/test_worker.py"]
THREADS = "tests/test_threads.py::test_every_schedule[{}]".format
DISPATCH = ["tests/test_dispatch.py"]
TESTS = {  # quick ones first; the first that fails ends it
    "actors/clock.py": [*ENGINE[1:2], THREADS("clock")],
    "actors/denoise.py": [*ENGINE, THREADS("counts")],
    "actors/fault.py": ENGINE,
    "actors/lanes.py": ENGINE,
    "actors/sampler.py": [THREADS("submit_and_close"), THREADS("submit_and_abandon"), *ENGINE[1:]],
    "pipelines/render/isolation.py": ["tests/test_isolation.py"],
    "pipelines/render/messages.py": ["tests/test_ledger.py", *WORKER],
    "pipelines/render/ledger.py": ["tests/test_ledger.py", *WORKER[:1]],
    "pipelines/render/ledger_actor.py": [THREADS("ledger"), "tests/test_ledger_actor.py", *WORKER[:1]],
    "pipelines/render/manifest_rows.py": ["tests/test_manifest.py", *WORKER],
    "pipelines/render/pool.py": DISPATCH,
    "pipelines/render/driver.py": DISPATCH,
    "pipelines/render/sink.py": ["tests/test_sinks.py", *WORKER[1:]],
    "pipelines/run/layout.py": ["tests/test_store.py", *WORKER],
    "pipelines/render/watchdog.py": [THREADS("watchdog"), *WORKER[1:]],
    "pipelines/render/attempt.py": [THREADS("commit"), THREADS("failure"), THREADS("images"), THREADS("span"), *WORKER],
    "pipelines/render/worker.py": [THREADS("unwanted"), THREADS("making_room"), *WORKER],
}
LATE = ("tests/test_dispatch.py", "tests/test_isolation.py")  # whose mutants come last: minutes each
SECOND = ("1 rebuilds", "1 silences", "1 kills", "1 faults", "takeovers", "[left", "late_")  # only for who survives
SECOND += ("seconds_of_all", "what_came", "meanwhile", "is_dropped", "nobody_answers", "heart_", "[sdxl]", "readers_of")
LEFT_OUT = ("test_a_mutation", "[s3]")


def draw(number: int) -> None:
    """One at a place and of a kind; none in an annotation, an import or a docstring."""
    from cosmic_ray.ast import get_ast_from_path
    from cosmic_ray.commands.init import _all_work_items
    from cosmic_ray.mutating import MutationVisitor

    files = sorted(TESTS)
    chance, places = random.Random(SEED), dict[Any, list[Any]]()
    with one_more_operator() as operator_of:
        for item in _all_work_items([Path(file) for file in files], {}):
            (spec,) = item.mutations
            kind = spec.operator_name.split("/")[-1].split("_")[0]
            places.setdefault((str(spec.module_path), *spec.start_pos, kind), []).append(spec)
        quiet = {file: set(annotations(file)) for file in files}
        at = sorted(place for place in places if place[1:3] not in quiet[place[0]])
        drawn = []
        for place in chance.sample(at, min(number, len(at))):
            spec = chance.choice(sorted(places[place], key=lambda spec: (spec.operator_name, spec.occurrence)))
            visitor = MutationVisitor(spec.occurrence, operator_of(spec.operator_name)(**spec.operator_args))
            code = visitor.walk(get_ast_from_path(spec.module_path)).get_code()
            drawn.append({"file": place[0], "line": place[1], "operator": spec.operator_name, "code": code})
    DRAWN.write_text(json.dumps(drawn))
    print(f"{len(drawn)} of {len(at):,} places in {len(files)} files")


def annotations(file: str) -> Iterator[tuple[int, int]]:
    """Positions in annotations, imports and docstrings: what is changed there says nothing of the tests."""
    for node in ast.walk(ast.parse(Path(file).read_text())):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Import | ast.ImportFrom) or ast.unparse(node).startswith("if TYPE_CHECKING"):
            parts.append(node)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts.append(node)
        for part in filter(None, parts):
            for line in range(part.lineno, part.end_lineno + 1):
                first = part.col_offset if line == part.lineno else 0
                last = part.end_col_offset if line == part.end_lineno else 200
                yield from ((line, column) for column in range(first, last))


class one_more_operator:
    """cosmic-ray's operators, and one that leaves a call, an assignment or a `del` out."""

    def __enter__(self) -> Any:
        import cosmic_ray.plugins as plugins
        import parso
        from cosmic_ray.operators.operator import Operator
        from parso.tree import search_ancestor

        class LeaveOut(Operator):
            def mutation_positions(self, node: Any) -> Iterator[Any]:
                kind = node.children[0].type if node.type == "simple_stmt" else ""
                in_function = kind in ("expr_stmt", "atom_expr", "del_stmt") and search_ancestor(node, "funcdef")
                if in_function and "log." not in node.get_code():
                    yield node.start_pos, node.end_pos

            def mutate(self, node: Any, index: int) -> Any:
                left_out = parso.parse("pass").children[0]
                left_out.prefix = node.get_first_leaf().prefix
                node.children[0] = left_out
                return node

            @classmethod
            def examples(cls) -> tuple[Any, ...]:
                return ()

        self._plugins, self._names, self._get = plugins, plugins.operator_names, plugins.get_operator
        plugins.operator_names = lambda: (*self._names(), "LeaveOut")
        plugins.get_operator = lambda name: LeaveOut if name == "LeaveOut" else self._get(name)
        return plugins.get_operator

    def __exit__(self, *_: object) -> None:
        self._plugins.operator_names, self._plugins.get_operator = self._names, self._get


class Forks:
    """A pytest plugin: where the tests would be run, they are run once for each mutant, in a fork."""

    def __init__(self, mutants: list[dict[str, Any]]) -> None:
        self.mutants = mutants

    def pytest_runtestloop(self, session: Any) -> bool:
        items = list(session.items)
        for left, mutant in zip(range(len(self.mutants), 0, -1), self.mutants, strict=True):
            outcome, said, seconds = self._judge(session, chosen(items, mutant["file"], mutant["again"]), mutant)
            kept = {"file": mutant["file"], "line": mutant["line"], "operator": mutant["operator"]}
            kept |= {name: mutant[name] for name in ("number", "again")}
            kept |= {"outcome": outcome, "said": said[-3000:], "seconds": round(seconds)}
            with RESULTS.open("a") as file:
                file.write(json.dumps(kept) + "\n")
            print(left, *[kept[name] for name in ("file", "line", "operator", "outcome", "seconds")], flush=True)
        session.testscollected = len(self.mutants)
        return True

    def _judge(self, session: Any, items: list[Any], mutant: dict[str, Any]) -> tuple[str, str, float]:
        path = Path(mutant["file"])
        before = path.read_text()
        try:
            path.write_text(mutant["code"])
            changes = changed_functions(before, mutant)
            if changes is None:
                return in_process(mutant["file"])
            return self._in_fork(session, items, (mutant["file"], changes))
        except SyntaxError as error:
            return "incompetent", str(error), 0.0
        finally:
            path.write_text(before)

    def _in_fork(self, session: Any, items: list[Any], change: Any) -> tuple[str, str, float]:
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            os.setsid()
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            failed = True
            try:
                put_in(*change)
                failed = run_items(session, items)
            finally:
                os._exit(int(failed))
        os.close(writing)
        return awaited(child, reading)


def run_items(session: Any, items: list[Any]) -> bool:
    """Whether one failed; the others are not run then."""
    for index, item in enumerate(items):
        following = items[index + 1] if index + 1 < len(items) else None
        signal.alarm(TEST_S)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            print("FAILED", item.nodeid)
            return True
    return False


def awaited(child: int, reading: int) -> tuple[str, str, float]:
    """-> its outcome, its last words, its seconds."""
    began, said = time.monotonic(), b""
    ended = os.pidfd_open(child)
    while (left := began + LIMIT_S - time.monotonic()) > 0:
        ready, _, _ = select.select([reading, ended], [], [], left)
        if ended in ready:
            break
        said = (said + os.read(reading, 1 << 16))[-20_000:]
    late = left <= 0
    os.set_blocking(reading, False)
    with suppress(BlockingIOError):
        said += os.read(reading, 1 << 16)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(ended)
    os.close(reading)
    late = late or os.waitstatus_to_exitcode(status) == -signal.SIGALRM
    outcome = "killed" if late or status else "survived"
    return outcome, "out of time" if late else said.decode(errors="replace"), time.monotonic() - began


def in_process(file: str) -> tuple[str, str, float]:
    """A pytest of its own, for what is not inside a function."""
    began, command = time.monotonic(), [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow and not s3"]
    command += ["-p", "no:cacheprovider", *TESTS[file]]
    command += ["-k", "not (a_mutation or rebuilds or silences or kills or faults or takeovers or left or late_)"]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return "killed", "out of time", time.monotonic() - began
    return "killed" if ended.returncode else "survived", ended.stdout[-3000:], time.monotonic() - began


def chosen(items: list[Any], file: str, again: bool) -> list[Any]:
    """In the order of TESTS; again: also those that are only for who survives, first."""
    wanted = [[item for item in items if item.nodeid.startswith(test)] for test in TESTS[file]]
    found = [item for some in wanted for item in some if not any(name in item.nodeid for name in LEFT_OUT)]
    whole = {"sampler", "sd1", "checkpoint"} if file != "actors/sampler.py" and file.startswith("actors/") else set()
    late = [item for item in found if any(name in item.nodeid for name in SECOND) or whole & {*item.fixturenames}]
    return [*late * again, *[item for item in found if item not in late]]


def changed_functions(before: str, mutant: dict[str, Any]) -> dict[tuple[str, int], Any] | None:
    """The code objects of the functions that are changed; None where something else is."""
    old, new = (compiled(code, str(Path(mutant["file"]).resolve())) for code in (before, mutant["code"]))
    if not only_inside(old, new):
        return None
    flat, changed = dict(codes(old)), dict(codes(new))
    if flat.keys() != changed.keys() or any(flat[key].co_freevars != changed[key].co_freevars for key in flat):
        return None
    differ = {key for key in flat if flat[key] != changed[key] and not only_inside(flat[key], changed[key])}
    if not differ or any(not flat[key].co_flags & 0x02 for key in differ):  # CO_NEWLOCALS: a function
        return None
    return {key: changed[key] for key in flat if flat[key] != changed[key] and flat[key].co_flags & 0x02}


@functools.cache
def compiled(code: str, file: str) -> types.CodeType:
    return compile(code, file, "exec")


def fits(mutant: dict[str, Any]) -> bool:
    """Whether it can be put into functions that live."""
    try:
        return changed_functions(Path(mutant["file"]).read_text(), mutant) is not None
    except SyntaxError:
        return True


def only_inside(old: Any, new: Any) -> bool:
    """Whether two code objects differ in what is defined inside them alone."""
    plain = [
        tuple(None if isinstance(each, types.CodeType) else (type(each), each) for each in code.co_consts)
        for code in (old, new)
    ]
    names = ("co_code", "co_names", "co_varnames", "co_exceptiontable")
    return plain[0] == plain[1] and all(getattr(old, name) == getattr(new, name) for name in names)


def codes(code: Any) -> Iterator[tuple[tuple[str, int], Any]]:
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield (each.co_qualname, each.co_firstlineno), each
            yield from codes(each)


def put_in(file: str, changed: dict[tuple[str, int], Any]) -> None:
    """Into the functions that live: of the module and of its classes, as they are wrapped."""
    module = sys.modules[file.removesuffix(".py").replace("/", ".")]
    found = 0
    for value in list(vars(module).values()):
        for member in [value, *(vars(value).values() if isinstance(value, type) else ())]:
            for function in unwrapped(member):
                code = function.__code__
                if code.co_filename == module.__file__ and (code.co_qualname, code.co_firstlineno) in changed:
                    function.__code__ = changed[code.co_qualname, code.co_firstlineno]
                    found += 1
    assert found, f"{file}: {list(changed)} is nowhere"


def unwrapped(member: Any) -> Iterator[Any]:
    for name in ("fget", "__func__", "func", "__wrapped__"):
        if (inner := getattr(member, name, None)) is not None:
            yield from unwrapped(inner)
    if isinstance(member, types.FunctionType):
        yield member


def results() -> dict[int, dict[str, Any]]:
    """The last one of each mutant."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {result["number"]: result for result in map(json.loads, lines)}


def run(late: bool, again: bool, only: list[int]) -> int:
    """What has no result yet. late: also what takes minutes each; again: what has survived, by all tests."""
    import pytest

    done = results()
    mutants = [mutant | {"number": number} for number, mutant in enumerate(json.loads(DRAWN.read_text()))]
    for mutant in mutants:
        mutant["again"] = again and done.get(mutant["number"], {}).get("outcome") == "survived"
    mutants = [mutant for mutant in mutants if mutant["again"] or (not again and mutant["number"] not in done)]
    mutants = [mutant for mutant in mutants if not only or mutant["number"] in only]
    takes_minutes = {file for file, tests in TESTS.items() if {*tests} & {*LATE}}
    mutants = [mutant for mutant in mutants if late or mutant["file"] not in takes_minutes]
    cost = {file: (file in takes_minutes, WORKER[1] in tests, len(tests)) for file, tests in TESTS.items()}
    mutants.sort(key=lambda mutant: (not fits(mutant), cost[mutant["file"]]))
    wanted = {test for mutant in mutants for test in TESTS[mutant["file"]]}
    return pytest.main(["-q", "-p", "no:cacheprovider", "-m", "not slow", "-s", *sorted(wanted)], [Forks(mutants)])


def table() -> None:
    """Of each file: drawn, killed, of them by time, survived; then each survivor."""
    counts, drawn = dict[str, Counter[str]](), json.loads(DRAWN.read_text())
    for result in results().values():
        seen = [result["outcome"]] + ["out of time"] * (result["said"] == "out of time")
        seen += ["later"] * (result["outcome"] == "killed" and result["again"])
        counts.setdefault(result["file"], Counter()).update(seen)
    print("| file | mutants | killed | by time | by what was added | survived |\n|---|---|---|---|---|---|")
    every = sum(counts.values(), Counter())
    for file, each in [*sorted(counts.items()), ("all", every)]:
        tried = each["killed"] + each["survived"]
        print(f"| {file} | {tried} | {each['killed']} | {each['out of time']} | {each['later']} | {each['survived']} |")
    print(f"\n{len(drawn) - len(results())} not run, {every['incompetent']} did not compile\n")
    for result in sorted(results().values(), key=lambda result: (result["file"], result["line"])):
        if result["outcome"] == "survived":
            before, after = Path(result["file"]).read_text(), drawn[result["number"]]["code"]
            lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
            print(
                f"{result['file']} {result['line']} {result['operator']} ({result['number']})",
                *list(lines)[2:],
                "",
                sep="\n",
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["draw", "run", "table"])
    parser.add_argument("--number", type=int, default=SAMPLE)
    parser.add_argument("--late", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--only", type=int, nargs="*", default=[])
    asked = parser.parse_args()
    verbs = {
        "draw": lambda: draw(asked.number),
        "run": lambda: run(asked.late, asked.again, asked.only),
        "table": table,
    }
    sys.exit(verbs[asked.what]())
