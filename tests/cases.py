"""Every case of a collection, tried: `python -m tests.cases FOLDER [NAME...]` prints a line for each.

A collection holds a folder a case (job.yaml and what it reads), `code/` (programs) and `checked/` (cases with a program
that checks them). What is typed for a case, which exit codes are right, and which words must stand in what is said, is
the table below; a case that needs machines or servers of its own names the tests of this project that have them.
"""

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pipelines.boundary import raised_by

ROOT = Path(__file__).parent.parent
NEVER = ("Traceback", "not foreseen")
BUCKET = "plain"
UNKNOWN = "no line of tests/cases.py says what is right"
PROBLEM = (2,)


@dataclass(frozen=True)
class Case:
    """verbs: what is typed, each with the exit codes that are right. says: patterns of what is said; never: not said.

    make: prepares the copy of its folder. look: what is wrong with what came of it, None: nothing. env, files: of a
    process of its own, and its limit of open files. tests: of this project, run in place of all that.
    """

    verbs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    make: Callable[[Path], None] | None = None
    look: Callable[[Path], str | None] | None = None
    env: dict[str, str] | None = None
    files: int | None = None
    s3: bool = False
    tests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What was done, the exit code of each part of it, the line that says most, and what is wrong; "": nothing."""

    done: str
    codes: str
    line: str
    wrong: str


def refused(*says: str, **others: Any) -> Case:
    """validate says it in one line, and nothing is started."""
    return Case((("validate", PROBLEM),), says, **others)


def told(*says: str, **others: Any) -> Case:
    """validate goes on, and says it."""
    return Case((("validate", (0,)),), says, **others)


def runs(*says: str, **others: Any) -> Case:
    """The whole job, to its good end."""
    return Case((("run", (0,)),), says, **others)


def tested(*tests: str) -> Case:
    """By tests of this project."""
    return Case(tests=tests)


def model(name: str, *says: str, verbs: tuple[tuple[str, tuple[int, ...]], ...] = (("validate", PROBLEM),)) -> Case:
    def make(folder: Path) -> None:
        from tests.case_models import make_model

        make_model(name, folder)

    return Case(verbs, says, make=make)


def scorer(folder: Path) -> None:
    from tests.case_models import make_scorer

    make_scorer(folder)


def made_by_its_program(folder: Path) -> None:
    subprocess.run([sys.executable, "make.py"], cwd=folder, check=True)


def corrected(folder: Path) -> None:
    """The first run, then the other list in place of the first."""
    code, said = typed(folder, "run")
    assert code == 3, said
    shutil.copy(folder / "prompts2.csv", folder / "prompts.csv")


def linked(name: str) -> Callable[[Path], None]:
    """The link that a copy of the collection may have turned into a file that holds its target."""

    def make(folder: Path) -> None:
        path = folder / name
        if not path.is_symlink():
            target = path.read_text().strip()
            path.unlink()
            path.symlink_to(target)

    return make


def partitions_are_columns(folder: Path) -> str | None:
    rows = manifest_rows(folder)
    found = sorted((row.get("category"), row.get("lang")) for row in rows)
    return None if {("shape", "en"), ("star", "de")} <= set(found) else f"category, lang: {found}"


def manifest_rows(folder: Path) -> list[dict[str, Any]]:
    from pipelines.run.layout import RunFolder

    return [row for table in RunFolder(str(folder / "out")).manifests() for row in table.to_pylist()]


def an_object_with_an_empty_part(folder: Path) -> None:
    client().put_object(Bucket=BUCKET, Key="dblcase//a.csv", Body=(folder / "a.csv").read_bytes())


def pictures_have_their_type(folder: Path) -> str | None:
    found = client().list_objects_v2(Bucket=BUCKET, Prefix="runs/ctype/images/")["Contents"]
    kinds = {client().head_object(Bucket=BUCKET, Key=each["Key"])["ContentType"] for each in found}
    return None if kinds == {"image/png"} else f"content types {kinds}"


def client() -> Any:
    import botocore.session

    url = os.environ["AWS_ENDPOINT_URL"]
    return botocore.session.Session().create_client("s3", endpoint_url=url, region_name="us-east-1")


def served(folder: Path) -> None:
    """Its server lives as long as this process."""
    server = subprocess.Popen([sys.executable, "serve.py"], cwd=folder, stderr=subprocess.DEVNULL)
    SERVERS.append(server)
    for _ in range(100):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 5081), 1).close()
            return
        time.sleep(0.1)


SERVERS: list["subprocess.Popen[bytes]"] = []
LONG = "/tmp/" + "a" * 60 + "/" + "b" * 40
NO_PROXY = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}
OK = r"2 of 2 rows: 2 ok, 0 failed"
PRE, SEEN, HEALTH = "tests/test_preflight.py", "tests/test_surroundings.py", "tests/test_engine_health.py"

CASES: dict[str, Case] = {
    "output-not-shared": tested(
        f"{PRE}::test_a_folder_that_a_node_does_not_share",
        f"{PRE}::test_what_is_planned_is_not_rendered_where_it_is_not_shared",
    ),
    "another-endpoint-on-the-workers": tested(f"{PRE}::test_another_endpoint_on_the_nodes"),
    "driver-env-not-on-workers": tested(f"{PRE}::test_keys_that_only_the_driver_has"),
    "job-submit-default-output": tested(
        f"{PRE}::test_a_submitted_job_names_a_folder_that_stays", f"{PRE}::test_a_job_that_ray_job_submit_starts"
    ),
    "symlinked-folder": told("2 prompts in", make=linked("in/more")),
    "broken-symlink": refused(r"part-1\.csv.*symbolic link", make=linked("in/part-1.csv")),
    "spark-glob": told("(2 prompts in|day2.parquet)"),
    "hive-partitions": runs(look=partitions_are_columns),
    "delta-table": refused("Delta"),
    "folder-of-other-kinds": told(r"b\.json", r"c\.jsonl\.zst", r"d\.csv\.bz2", r"e\.txt"),
    "changed-row-same-id": Case((("run", PROBLEM),), ("changed", "input.changed"), make=corrected),
    "output-inside-input": Case((("run", PROBLEM),), ("lies inside input.path",)),
    "s3-put-option-typo": refused("ServerSideEncryptionn", "did you mean ServerSideEncryption", s3=True),
    "embedded-images": told(r"input\.drop", make=made_by_its_program),
    "model-text-encoder-prefix": model("model-text-encoder-prefix", "text_encoder"),
    "model-text-encoder-part-missing": model("model-text-encoder-part-missing", "text_encoder"),
    "scorer-weights-that-do-not-fit": refused(r"quality\.0", make=scorer),
    "model-tokenizer-without-vocabulary": model("model-tokenizer-without-vocabulary", "vocab"),
    "model-tokenizer-missing": model("model-tokenizer-missing", "tokenizer"),
    "model-edm-scheduler": model("model-edm-scheduler", "EDM"),
    "model-lcm-time-cond": model("model-lcm-time-cond", "time_cond_proj_dim|latent consistency"),
    "model-karras": model("model-karras", "use_karras_sigmas"),
    "model-textual-inversion": model("model-textual-inversion", "", verbs=(("run", (0, 2)),)),
    "model-lfs-pointer": model("model-lfs-pointer", "git lfs pull"),
    "model-shard-missing": model("model-shard-missing", r"-of-\d+\.safetensors"),
    "model-unet-keys-missing": model("model-unet-keys-missing", "mid_block"),
    "model-nine-channels": model("model-nine-channels", "inpainting|in_channels"),
    "model-tiny-vae": model("model-tiny-vae", "AutoencoderTiny"),
    "model-fp16-in-part": model("model-fp16-in-part", r"\d of \d rows: \d ok, 0 failed", verbs=(("run", (0,)),)),
    "single-file-checkpoint": refused("single|one file", "convert|from_single_file"),
    "ascii-console": runs(OK, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}),
    "comfyui-seeds": Case((("run", (3,)),), ("seed must be a whole number",)),
    "http-without-length": told("1 prompt in", make=served),
    "long-tmpdir": refused("TMPDIR", "too long", env={"TMPDIR": LONG}),
    "many-files-low-ulimit": runs(OK, env={}, files=256),
    "proxy-with-loopback": runs(OK, env=NO_PROXY),
    "ray-tmpdir-not-writable": refused("RAY_TMPDIR", "cannot be written", env={"RAY_TMPDIR": "/proc/ray"}),
    "s3-content-type": runs(OK, s3=True, look=pictures_have_their_type),
    "s3-double-slash": told("1 prompt in|2 prompts in", make=an_object_with_an_empty_part, s3=True),
    "scheme-S3-upper": Case((("validate", PROBLEM),), (r"s3|S3",), s3=True),
    "scheme-abfs": refused("adlfs"),
    "scheme-gs": refused("gcsfs"),
    "scheme-hf": refused("hf://|huggingface.co"),
    "scheme-output-gs": refused("gs:// is only read here"),
    "working-dir-too-large": tested(
        f"{SEEN}::test_ray_refuses_a_working_directory_that_is_too_large",
        f"{SEEN}::test_what_is_too_large_to_be_uploaded_is_named",
    ),
}

CODE: dict[str, Case] = {
    "broken_device.py": tested(f"{HEALTH}::test_a_lost_device_fails_no_row"),
    "calibrate_tb.py": tested("tests/test_checkpoint_check.py::test_calibrate_says_it_in_one_line"),
    "clock_race.py": tested("tests/test_clock.py::test_many_readers_count_every_block_once"),
    "counts_race.py": tested(f"{HEALTH}::test_readers_of_the_counts_see_one_moment"),
    "fake_cluster.yaml": tested("tests/test_autoscaled.py::test_auto_is_a_gpu_before_one_is_alive_and_leaves_no_actor"),
    "gpu_auto.py": tested("tests/test_autoscaled.py::test_without_a_gpu_type_auto_is_refused_with_the_remedy"),
    "heartbeat_dies.py": tested("tests/test_worker.py::test_a_heart_goes_on_beating_whatever_is_raised"),
    "ledger_readopt.py": tested("tests/test_ledger.py::test_a_late_heartbeat_adopts_nothing_that_its_worker_has_ended"),
    "oom_after_close.py": tested(f"{HEALTH}::test_no_memory_once_anywhere_while_closing"),
    "submit_after_close.py": tested(f"{HEALTH}::test_nothing_is_taken_after_close"),
    "two_clips.py": tested(
        "tests/test_checkpoint_check.py::test_scorers_taken_together",
        "tests/test_checkpoint_check.py::test_scorers_are_refused_before_anything_is_loaded",
    ),
    "two_pools.py": tested("tests/test_dispatch.py::test_a_pool_that_is_done_ends_its_actors_and_the_other_goes_on"),
}

NEWCOMERS: dict[str, Case] = {
    "newcomers 2: edited prompt, same id": tested(
        "tests/test_changed_rows.py::test_a_changed_row_is_refused_with_its_id"
    ),
    "newcomers 5: bad row, corrected": tested("tests/test_changed_rows.py::test_a_mended_row_is_planned_again_once"),
    "newcomers 6: one image gone, one cut": tested(
        "tests/test_verify_cli.py::test_what_is_not_there_or_cut_short_is_seen_without_full"
    ),
    "newcomers 7: image gone, run's end": tested(
        "tests/test_report.py::test_a_picture_that_is_gone_is_a_placeholder_and_breaks_no_page",
        "tests/test_cases.py::test_a_run_ends_well_where_pictures_are_gone",
    ),
    "newcomers 11: verify at another endpoint": tested(
        "tests/test_verify_cli.py::test_a_store_that_does_not_answer_is_told_with_its_endpoint",
        "tests/test_verify_cli.py::test_the_endpoint_is_that_of_the_job",
    ),
    "newcomers 18: cuda without one": tested(f"{PRE}::test_a_device_that_this_machine_lacks"),
    "newcomers 21: bad rows in validate": tested(
        "tests/test_cases.py::test_validate_says_how_a_run_of_bad_rows_will_end"
    ),
    "newcomers 25: strays and delete-orphans": tested(
        "tests/test_verify.py::test_a_stray_is_an_orphan_wherever_it_lies_and_goes"
    ),
}


def typed(folder: Path, verb: str) -> tuple[int, str]:
    """A verb on the folder's job file, in this process; -> the exit code and all that was said."""
    from jobs.__main__ import main

    said, before = io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main([verb, "job.yaml"])
    except BaseException as error:  # noqa: BLE001 - it is what the case shows
        return 1, f"{said.getvalue()}\nTraceback: {type(error).__name__}: {error}"
    finally:
        os.chdir(before)
    return code, said.getvalue()


def typed_apart(folder: Path, verb: str, env: dict[str, str], files: int | None) -> tuple[int, str]:
    """The same in a process of its own, as a user has it."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    limit = f"ulimit -n {files}; " if files else ""
    line = f'{limit}exec "{sys.executable}" -m jobs {verb} job.yaml'
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=bare | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        timeout=600,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def tried(case: Case, folder: Path) -> Outcome:
    """A case in a copy of its folder."""
    if case.make and (error := raised_by(partial(case.make, folder))) is not None:
        return Outcome("", "", "", f"it could not be made ready: {type(error).__name__}: {error}")
    said, codes, wrong = "", [], []
    for verb, right in case.verbs:
        code, words = typed(folder, verb) if case.env is None else typed_apart(folder, verb, case.env, case.files)
        codes.append(code)
        said += words
        wrong += [f"exit {code}, not {right}"] if code not in right else []
        errors = [line for line in words.splitlines() if line.startswith("error: ")]
        wrong += ["refused without a line"] if code == 2 and not errors else []
    wrong += [f"nothing says {pattern!r}" for pattern in case.says if not re.search(pattern, said, re.IGNORECASE)]
    wrong += [f"it says {word!r}" for word in (*NEVER, *case.never) if word in said]
    if case.look and not wrong and (found := case.look(folder)):
        wrong.append(found)
    return Outcome(
        ", ".join(verb for verb, _ in case.verbs), ", ".join(map(str, codes)), telling(said, case), "; ".join(wrong)
    )


def telling(said: str, case: Case) -> str:
    """The line that says what the case is about."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    meant = [line for line in lines for pattern in case.says if pattern and re.search(pattern, line, re.IGNORECASE)]
    return next(iter([*(line for line in errors if line in meant), *errors, *meant, *reversed(lines)]), "")


def results(tests: list[str]) -> dict[str, list[str]]:
    """All these tests in one process: of each how it ended, as often as it has parameters."""
    with tempfile.TemporaryDirectory(prefix="cases-") as scratch:
        report = Path(scratch) / "report.xml"
        line = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *sorted(set(tests)),
        ]
        subprocess.run(line, cwd=ROOT, capture_output=True, timeout=3600, check=False)
        found: dict[str, list[str]] = {}
        for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
            ended = next((part.tag for part in case if part.tag in ("failure", "error", "skipped")), "passed")
            name = case.attrib["classname"].replace(".", "/") + ".py::" + case.attrib["name"].partition("[")[0]
            found.setdefault(name, []).append(ended)
    return found


def by_tests(case: Case, found: dict[str, list[str]]) -> Outcome:
    """How the tests that cover a case ended."""
    ended = {test: found.get(test, ["not run"]) for test in case.tests}
    bad = {end for ends in ended.values() for end in ends} - {"passed"}
    counts = ", ".join(f"{test.partition('::')[2]}: {', '.join(sorted(set(ends)))}" for test, ends in ended.items())
    number = sum(map(len, ended.values()))
    return Outcome(
        f"{number} tests", "1" if bad else "0", counts, f"not all passed: {', '.join(sorted(bad))}" if bad else ""
    )


def checked(check: Path) -> Outcome:
    """A case with a program of its own."""
    done = subprocess.run([check, sys.executable, ROOT], capture_output=True, text=True, timeout=300, check=False)
    line = next(iter(done.stdout.strip().splitlines()[-1:]), "it said nothing")
    return Outcome("its own check", str(done.returncode), line, "" if done.returncode == 0 else "its check says no")


@contextlib.contextmanager
def surroundings(with_s3: bool) -> Iterator[None]:
    """One Ray and, where it is asked for and installed, one S3 server with a bucket `plain`."""
    import ray

    from tests.s3_server import S3Server, only_these_keys

    keys = only_these_keys()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with contextlib.ExitStack() as stack:
        if with_s3:
            server = stack.enter_context(S3Server(*keys))
            os.environ["AWS_ENDPOINT_URL"] = server.endpoint_url
            client().create_bucket(Bucket=BUCKET)
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        stack.callback(shutil.rmtree, folder, True)
        env = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(
            address="local", num_cpus=4, include_dashboard=False, _temp_dir=folder, log_to_driver=False, runtime_env=env
        )
        stack.callback(ray.shutdown)
        yield
    for server in SERVERS:
        server.send_signal(signal.SIGTERM)


def row(name: str, outcome: Outcome) -> str:
    """One line of the table."""
    verdict = f"WRONG: {outcome.wrong}" if outcome.wrong else "ok"
    return f"{name} | {outcome.done} | {outcome.codes} | {outcome.line:.300} | {verdict}"


def outcomes(collection: Path, names: list[str]) -> Iterator[tuple[str, Outcome]]:
    """Every case of the collection, or those, tried one after another."""

    def wanted(name: str) -> bool:
        return not names or any(name.startswith(each) for each in names)

    folders = sorted(path.name for path in collection.iterdir() if (path / "job.yaml").is_file())
    typed_cases = [name for name in folders if wanted(name) and not (name in CASES and CASES[name].tests)]
    if typed_cases:
        with surroundings(any(name in CASES and CASES[name].s3 for name in typed_cases)):
            for name in typed_cases:
                if name not in CASES:
                    yield name, Outcome("", "", "", UNKNOWN)
                    continue
                with tempfile.TemporaryDirectory(prefix="case-") as scratch:
                    folder = Path(scratch) / name
                    shutil.copytree(collection / name, folder, symlinks=True)
                    subprocess.run(["chmod", "-R", "u+w", folder], check=True)
                    yield name, tried(CASES[name], folder)
    code = sorted(path.name for path in (collection / "code").glob("*.*"))
    known = {name: CASES[name] for name in folders if name in CASES} | {
        f"code/{name}": CODE.get(name, Case()) for name in code
    }
    known |= NEWCOMERS if (collection / "newcomers.md").exists() else {}
    mine = {name: case for name, case in known.items() if wanted(name) and not case.verbs}
    tests = [test for case in mine.values() for test in case.tests]
    found = results(tests) if tests else {}
    for name, case in mine.items():
        yield name, by_tests(case, found) if case.tests else Outcome("", "", "", UNKNOWN)
    for check in sorted((collection / "checked").glob("*/check")):
        if wanted(name := f"checked/{check.parent.name}"):
            yield name, checked(check)


def main(arguments: list[str]) -> int:
    """The table; 1 where a case is not answered as it should be."""
    if not arguments:
        print(__doc__)
        return 2
    wrong: list[bool] = []
    for name, outcome in outcomes(Path(arguments[0]).resolve(), arguments[1:]):
        wrong.append(bool(outcome.wrong))
        print(row(name, outcome), flush=True)
    print(f"{len(wrong)} cases, {sum(wrong)} WRONG")
    return 1 if any(wrong) or not wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
