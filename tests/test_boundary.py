"""The boundary of the command line: whatever is raised, by us or by others, is one line; a bug has a log besides."""

import ast
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from jobs.job_file.errors import blaming, message_of
from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.read import read_job
from jobs.job_file.scorers import check_scorers
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import report_error
from pipelines.boundary import raised_by
from pipelines.pipeline_error import PipelineError
from pipelines.render.pool import RenderError
from pipelines.run.layout import RunFolder
from pipelines.storage.folder import StorageError

ROOT = Path(__file__).parent.parent
BASES = {"ActorError", "PipelineError", "LearningError", "Unlearnable", "ConfigError"}
CONTROL = {  # ends a loop, a row or an attempt, and is caught where it means something
    *(
        "EndOfRows",
        "NotFinite",
        "FlatPicture",
        "_Torn",
        "CsvFault",
        "TooLarge",
        "Dropped",
        "BadRow",
        "RowFailed",
        "AttemptFailed",
        "Unsafe",
        "NoSafetyVerdict",
        "StampFailed",
    ),
    *("WorkerDied", "RowTimeout", "Abandoned", "Interrupted"),
}
JOB = "input: {path: prompts.csv}\nsteps: {selector: words}\n"


def said(error: BaseException) -> tuple[int, str]:
    """The exit code, and what stands on stderr."""
    console = Console(io.StringIO())
    return report_error(console, error), console.stream.getvalue()  # type: ignore[attr-defined]


def raised(call: Callable[[], object]) -> Exception:
    error = raised_by(call)
    assert error is not None
    return error


def classes() -> dict[str, tuple[str, set[str]]]:
    """Of every exception class of ours its file and the names of its bases."""
    found = {}
    for path in [path for room in ("actors", "pipelines", "training", "jobs") for path in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name] = (str(path), {base.id for base in node.bases if isinstance(base, ast.Name)})
    grown = {"Exception", "BaseException", "ValueError", "RuntimeError", "OSError", "KeyError"}
    while more := {name for name, (_, bases) in found.items() if bases & grown} - grown:
        grown |= more
    return {name: found[name] for name in grown & found.keys()}


def test_every_error_of_ours_has_the_base_of_its_room() -> None:
    ours = classes()
    assert {"StorageError", "CheckpointError", "TableError", "NotSharedError"} <= ours.keys()
    based = set(BASES)
    while more := {name for name, (_, bases) in ours.items() if bases & based} - based:
        based |= more
    assert {name: ours[name][0] for name in ours.keys() - based - CONTROL} == {}


@pytest.mark.parametrize(
    ("retryable", "started", "code"), [(False, False, 2), (True, False, 1), (False, True, 1), (True, True, 1)]
)
def test_exit_2_only_where_nothing_was_started(retryable: bool, started: bool, code: int) -> None:
    console = Console(io.StringIO())
    console.started = started
    assert report_error(console, StorageError("no bucket", retryable)) == code


def test_a_run_that_could_not_go_on_is_exit_1_and_no_fault_of_a_key() -> None:
    assert said(RenderError("the pool is gone")) == (1, "error: the pool is gone\n")
    with pytest.raises(RenderError), blaming(read_job(JOB, "j.yaml"), "input.path"):
        raise RenderError("the pool is gone")


def test_the_message_is_found_inside_what_wraps_it() -> None:
    inner = StorageError("no bucket")
    wrapped = RuntimeError("a task failed\nTraceback ...")
    wrapped.cause = inner  # type: ignore[attr-defined]
    chained = RuntimeError("outer")
    chained.__cause__ = wrapped
    for error in (wrapped, chained):
        assert said(error) == (2, "error: no bucket\n")
    hidden = RuntimeError("a bug")
    hidden.__context__, hidden.__suppress_context__ = inner, True
    assert message_of(hidden) is None
    assert message_of(RuntimeError("a bug")) is None


def of_the_cluster(error: Exception) -> Exception:
    """As Ray gives an error of a task back."""
    from ray.exceptions import RayTaskError

    return RayTaskError("task", "Traceback (most recent call last):\n ...", error).as_instanceof_cause()


def test_an_error_of_ours_comes_through_ray_by_its_type() -> None:
    class NewError(PipelineError):
        pass

    assert said(of_the_cluster(NewError("the shelf is empty"))) == (2, "error: the shelf is empty\n")
    assert said(of_the_cluster(pa.ArrowInvalid("no footer")))[1].startswith("error: a Parquet file or another table")
    code, line = said(of_the_cluster(TypeError("a bug")))
    assert (code, "this was not foreseen: TypeError: a bug" in line) == (1, True)


def test_what_ray_lost_is_a_message() -> None:
    from ray.exceptions import WorkerCrashedError

    code, line = said(WorkerCrashedError())
    assert code == 1
    assert line.startswith("error: Ray failed: WorkerCrashedError: ")
    assert line.endswith("the same command goes on where it stopped\n")


def read_torn_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs")
    load_file(tmp_path / "model.safetensors")


def read_torn_table(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no footer")
    pq.read_table(tmp_path / "a.parquet")


def cast_a_table(tmp_path: Path) -> None:
    pa.array(["x"]).cast(pa.int64())


def load_a_model(tmp_path: Path) -> None:
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text("{")
    AutoConfig.from_pretrained(tmp_path, local_files_only=True)


def load_a_scheduler(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    DDIMScheduler(beta_schedule="square")


def ask_the_hub(tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download("own er/na me", local_files_only=True)


def ask_a_scheme(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("nonesuch")


def ask_a_store(tmp_path: Path) -> None:
    import botocore.session

    client = botocore.session.Session().create_client(
        "s3", endpoint_url="http://me:hunter2@127.0.0.1:1", region_name="eu", config=quick()
    )
    client.list_buckets()


def quick() -> Any:
    from botocore.config import Config

    return Config(retries={"total_max_attempts": 1}, connect_timeout=1)


def be_denied_by_a_store(tmp_path: Path) -> None:
    from botocore.exceptions import ClientError

    raise ClientError({"Error": {"Code": "AccessDenied", "Message": "signature hunter2 of key"}}, "PutObject")


def ask_a_web_server(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("http").cat_file("http://127.0.0.1:1/prompts.csv")


STORE, CHECKPOINT, TABLE = "a store failed: ", "a checkpoint failed: ", "a Parquet file or another table failed: "


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (read_torn_weights, CHECKPOINT + "SafetensorError: "),
        (load_a_model, CHECKPOINT),
        (load_a_scheduler, CHECKPOINT + "NotImplementedError: square"),
        (ask_the_hub, CHECKPOINT + "HFValidationError: "),
        (read_torn_table, TABLE + "ArrowInvalid: "),
        (cast_a_table, TABLE + "ArrowInvalid: Failed to parse string"),
        (ask_a_scheme, STORE + "ValueError: Protocol not known: nonesuch"),
        (ask_a_store, STORE + 'EndpointConnectionError: Could not connect to the endpoint URL: "http://127.0.0.1:1/"'),
        (be_denied_by_a_store, STORE + "ClientError: PutObject: AccessDenied; "),
        (ask_a_web_server, STORE + "ClientConnectorError: "),
    ],
)
def test_what_others_raise_is_one_line_without_a_secret(
    call: Callable[[Path], None], start: str, tmp_path: Path
) -> None:
    code, line = said(raised(lambda: call(tmp_path)))
    assert code == 2
    assert line.startswith(f"error: {start}"), line
    assert line.count("\n") == 1
    assert "hunter2" not in line
    assert "Traceback" not in line


def test_what_the_system_refuses_names_the_place_and_the_remedy(tmp_path: Path) -> None:
    def fill() -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    assert said(raised(fill)) == (2, "error: No space left on device; free some space\n")
    assert said(raised(tmp_path.read_bytes)) == (
        2,
        f"error: {tmp_path}: Is a directory; it is a folder: correct the path\n",
    )
    gone = tmp_path / "gone"
    assert said(raised(gone.read_bytes)) == (2, f"error: {gone}: No such file or directory; correct the path\n")
    missing = raised(lambda: RunFolder(str(tmp_path)).read_plan(1))
    assert said(missing)[1].endswith(
        "plan.json: no such object; `python -m jobs verify RUN` names what a run has lost\n"
    )
    assert "not enough memory" in said(MemoryError())[1]


def test_a_damaged_plan_or_manifest_is_named(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    for key, read in (
        ("plan/0001/plan.json", lambda: run.read_plan(1)),
        ("plan/0001/shards.parquet", lambda: run.shard_index(1)),
        ("manifest/0001-000000.parquet", lambda: run.read_manifest("0001-000000")),
    ):
        run.write(key, b"{torn")
        code, line = said(raised(read))
        assert code == 2
        assert line.startswith(f"error: {run.url_of(key)} cannot be read: ")
        assert f"python -m jobs verify {run.url}" in line


def break_the_output(job: Any) -> Any:
    return {}["a bug"]


def test_a_bug_is_one_line_with_a_log_and_a_traceback_only_by_debug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    Path("job.yaml").write_text(JOB)
    monkeypatch.setattr("jobs.steps.checking.run_folder", break_the_output)
    assert main(["calibrate", "job.yaml", "--json"]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    found = re.fullmatch(
        r"error: this was not foreseen: KeyError: 'a bug' at jobs/steps/\w+\.py:\d+; its traceback is in (\S+)\. .*\n",
        err,
    )
    assert found, err
    assert "break_the_output" in Path(found[1]).read_text()
    assert json.loads(out)["status"] == "failed"
    with pytest.raises(KeyError):
        main(["calibrate", "job.yaml", "--debug"])


def test_a_bug_on_a_full_disk_is_still_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    code, line = said(KeyError("a bug"))
    assert code == 1
    assert "its traceback could not be kept (No such file or directory): --debug shows it" in line


def test_blaming_gives_errors_of_others_the_place_of_a_key(tmp_path: Path) -> None:
    job = read_job(JOB, "j.yaml")
    with pytest.raises(ConfigError) as caught, blaming(job, "input.path"):
        read_torn_table(tmp_path)
    (fault,) = caught.value.faults
    assert fault.where == "j.yaml:1:15"
    assert fault.message.startswith(TABLE)
    kept = ConfigError([Fault("j.yaml:9:9", "its own place")])
    with pytest.raises(ConfigError) as caught, blaming(job, "input.path"):
        raise kept
    assert caught.value is kept
    with pytest.raises(KeyError), blaming(job, "input.path"):
        raise KeyError("a bug")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1 / 0\n", "cannot be imported: ZeroDivisionError (division by zero)"),
        ("def judge(images\n", "cannot be imported: SyntaxError"),
        ("import nonesuch_package\n", "there is no {name}:judge (No module named 'nonesuch_package')"),
        ("judge = 3\n", "{name}:judge is no function but int"),
        ("def other(): ...\n", "there is no {name}:judge"),
        ("raise SystemExit(3)\n", "cannot be imported: RuntimeError (it ends the process that imports it)"),
    ],
)
def test_a_scorer_whose_module_is_broken_is_one_line(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"my_scorer_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    job = read_job(f"{JOB}quality: [{{scorer: '{name}:judge'}}]\n", "j.yaml")
    with pytest.raises(ConfigError) as caught:
        check_scorers(job)
    (fault,) = caught.value.faults
    assert fault.where == "j.yaml:3:11"
    assert words.format(name=name) in fault.message
