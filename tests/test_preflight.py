"""No job starts on machines that do not share its run folder: two real nodes, a disk of one's own, two stores."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pytest

from jobs.__main__ import main
from jobs.job_file.positions import ConfigError
from jobs.job_file.read import load_job
from jobs.job_file.settings import resolve
from jobs.steps.check_nodes import NOBODY, SUBMITTED, check_nodes, refuse_rays_copy
from jobs.steps.rendering import render_job
from jobs.terminal.console import Console
from pipelines.cluster.nodes import Preflight, ask_every_node, listing
from pipelines.render.driver import RenderResult
from pipelines.run.drivers import claim
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Generation, Plan
from pipelines.run.proof import probe_object
from pipelines.run.schema import manifest_schema, schema_to_json
from tests.fake_cluster import _free_ports
from tests.s3_server import S3Server, server_or_skip

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")
MARK = "STEPTHRIFT_TWO_NODES"
STORE = "--object-store-memory=80000000"
START_S, END_S = 120.0, 10.0
KEYS = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


class TwoNodes:
    """A head without CPUs, whose folder `private` is a disk of its own and which knows another store; and a node.

    The node shares all disks with the driver and has no AWS credentials.
    """

    def __init__(self, other_endpoint: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))  # short: Ray puts sockets there
        self.private, self.mark = self.folder / "private", secrets.token_hex(8)
        self.private.mkdir()
        self.port, self.client_port = _free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        bare = {name: value for name, value in os.environ.items() if name[:4] not in ("AWS_", "RAY_")}
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # whatever lies in ~/.ray
        bare |= self.token | {MARK: self.mark, "PYTHONPATH": str(ROOT)}
        self.env = bare | {"AWS_EC2_METADATA_DISABLED": "true"}
        self.head_env = self.env | KEYS | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": other_endpoint}
        self.nodes = 0

    def start_head(self) -> None:
        """In a mount namespace of its own."""
        command = [RAY, "start", "--head", "--block", f"--port={self.port}", f"--temp-dir={self.folder}/ray"]
        command += [f"--ray-client-server-port={self.client_port}", "--include-dashboard=false", STORE]
        command += ["--num-cpus=0", "--num-gpus=0", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        command += ["--dashboard-agent-listen-port=0"]
        hide = f'mount -t tmpfs tmpfs {self.private} && exec "$@"'
        self._start(["unshare", "-m", "sh", "-c", hide, "sh", *command], self.head_env)

    def start_submittable_head(self) -> str:
        """One that takes jobs; -> the address for `ray job submit`."""
        dashboard, agent = _free_ports(2)
        command = [RAY, "start", "--head", "--block", f"--port={self.port}", f"--temp-dir={self.folder}/ray", STORE]
        command += [f"--ray-client-server-port={self.client_port}", "--include-dashboard=true", "--num-cpus=1"]
        command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
        command += [f"--dashboard-agent-listen-port={agent}", "--num-gpus=0", "--disable-usage-stats"]
        self._start(command, self.env)
        return f"http://127.0.0.1:{dashboard}"

    def start_node(self) -> None:
        """A second raylet, with one CPU."""
        command = [RAY, "start", f"--address={self.address}", "--block", STORE, "--num-cpus=1", "--num-gpus=0"]
        command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats", "--dashboard-agent-listen-port=0"]
        self._start(command, self.env)

    def _start(self, command: list[str], env: dict[str, str]) -> None:
        log = self.folder / f"start-{self.nodes}.log"
        with log.open("wb") as said:
            process = subprocess.Popen(command, env=env, stdout=said, stderr=said, cwd=ROOT)
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in (text := log.read_text("utf-8", "replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node does not start:\n{text}")
            time.sleep(0.2)
        self.nodes += 1

    def close(self) -> None:
        """End the processes that inherited its mark, and no others."""
        for end in (psutil.Process.terminate, psutil.Process.kill):
            mine = []
            for process in psutil.process_iter():
                with suppress(psutil.Error, OSError):
                    if process.environ().get(MARK) == self.mark:
                        mine += [process, *process.children(recursive=True)]
            for process in set(mine):
                with suppress(psutil.NoSuchProcess):
                    end(process)
            psutil.wait_procs(set(mine), END_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def jobs(self, verb: str, job: Path, *arguments: str, **env: str) -> tuple[int, str]:
        """A verb on this cluster by the real command line: exit code and stderr; never a traceback."""
        shell = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | self.token | env
        command = [sys.executable, "-m", "jobs", verb, str(job), "--address", self.address, *arguments]
        ended = subprocess.run(command, cwd=ROOT, env=shell, capture_output=True, text=True, timeout=500, check=False)
        assert "Traceback" not in ended.stderr
        assert not any(key in ended.stdout + ended.stderr for key in KEYS.values())
        return ended.returncode, ended.stderr


@pytest.fixture(scope="module")
def stores(s3: S3Server) -> Iterator[tuple[S3Server, S3Server, str]]:
    """The driver's store and another one, and the bucket that is in both."""
    with server_or_skip(s3.access_key, s3.secret_key) as other:
        bucket = s3.bucket()
        other._client().create_bucket(Bucket=bucket)
        yield s3, other, bucket


@pytest.fixture(scope="module")
def head(stores: tuple[S3Server, S3Server, str]) -> Iterator[TwoNodes]:
    """The head alone, until `cluster` is asked for."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no mount namespace can be made here")
    cluster = TwoNodes(stores[1].endpoint_url)
    try:
        cluster.start_head()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def cluster(head: TwoNodes) -> TwoNodes:
    """Both nodes."""
    if head.nodes == 1:
        head.start_node()
    return head


def write_job(folder: Path, output: str, prompts: Path | None = None, more: str = "") -> Path:
    """A job of two rows."""
    if prompts is None:
        prompts = folder / "prompts.csv"
    prompts.write_text("prompt\na red circle\na blue square\n")
    job = folder / "job.yaml"
    job.write_text(
        f"input: {{path: {prompts}}}\nsteps: {{selector: fixed, fixed: 2}}\n"
        f"pools: [{{name: default, actors: 1, num_gpus: 0, lanes: 4}}]\noutput: {{path: {output}}}\n{more}"
    )
    return job


def refused(cluster: TwoNodes, verb: str, job: Path, *arguments: str, **env: str) -> list[str]:
    """The errors; exit code 2, and nothing but errors is said."""
    code, said = cluster.jobs(verb, job, *arguments, **env)
    assert code == 2, said
    lines = said.splitlines()
    assert lines
    assert all(line.startswith(f"error: {job}:") for line in lines), said
    return lines


# a cluster


@pytest.mark.ray
@pytest.mark.s3
def test_a_cluster_without_workers_is_no_fault(head: TwoNodes, tmp_path: Path) -> None:
    assert head.nodes == 1
    code, said = head.jobs("validate", write_job(tmp_path, f"{tmp_path}/out"))
    assert code == 0, said
    assert NOBODY in said
    assert RunFolder(f"{tmp_path}/out").names() == []
    (line,) = refused(head, "validate", write_job(tmp_path, f"{head.private}/out"))
    assert "is not shared with host" in line


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_a_folder_that_a_node_does_not_share(cluster: TwoNodes, tmp_path: Path) -> None:
    output = f"{cluster.private}/{tmp_path.name}"
    job = write_job(tmp_path, output)
    for verb in ("plan", "run", "run"):
        (line,) = refused(cluster, verb, job)
        assert f":4:16: the run folder {output} is not shared with host " in line
        assert "there is no such folder there. Put output.path on a disk that every machine mounts" in line
    run = RunFolder(output)
    assert run.generations() == []
    assert run.names() == ["epochs"]
    assert [json.loads(run.read(f"epochs/{name}"))["ended_at"] is None for name in run.names("epochs")] == [False] * 3


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_what_is_planned_is_not_rendered_where_it_is_not_shared(
    ray_cluster: Any, cluster: TwoNodes, tmp_path: Path
) -> None:
    output = f"{cluster.private}/{tmp_path.name}"
    job = write_job(tmp_path, output)
    assert main(["plan", str(job)]) == 0
    (line,) = refused(cluster, "render", job)
    assert "is not shared with host" in line
    assert RunFolder(output).attempts() == {}


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_prompts_that_a_node_does_not_have(cluster: TwoNodes, tmp_path: Path) -> None:
    job = write_job(tmp_path, f"{tmp_path}/out", cluster.private / f"{tmp_path.name}.csv")
    (line,) = refused(cluster, "run", job)
    assert ":1:15: input.path is not the same on host " in line
    assert "there it holds nothing, here 1 files of 34 bytes" in line
    assert RunFolder(f"{tmp_path}/out").generations() == []


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_another_endpoint_on_the_nodes(
    cluster: TwoNodes, stores: tuple[S3Server, S3Server, str], tmp_path: Path
) -> None:
    ours, other, bucket = stores
    job = write_job(tmp_path, f"s3://{bucket}/runs/endpoint")
    lines = refused(cluster, "run", job, AWS_ENDPOINT_URL=ours.endpoint_url)
    assert len(lines) == 2
    (elsewhere,) = [line for line in lines if "of it at " in line]
    assert f"at {other.endpoint_url} (AWS_ENDPOINT_URL in the environment); the driver uses" in elsewhere
    assert f"uses {ours.endpoint_url} (AWS_ENDPOINT_URL in the environment). Write storage" in elsewhere
    (bare,) = [line for line in lines if "it has no credentials" in line]
    assert f"It also uses S3 (AWS itself) where the driver uses {ours.endpoint_url}" in bare
    run = RunFolder(f"s3://{bucket}/runs/endpoint", load_options(ours))
    assert run.names() == ["epochs"]


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_keys_that_only_the_driver_has(
    cluster: TwoNodes, stores: tuple[S3Server, S3Server, str], tmp_path: Path
) -> None:
    ours, _, bucket = stores
    job = write_job(tmp_path, f"s3://{bucket}/runs/keys", more=f"storage: {{endpoint_url: {ours.endpoint_url}}}\n")
    (line,) = refused(cluster, "run", job)  # the head has them, the node has not
    assert "it has no credentials, neither in the environment nor by a profile or a role; the driver's" in line
    assert "do not travel with a job. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node" in line
    assert "It also uses" not in line
    assert RunFolder(f"s3://{bucket}/runs/keys", load_options(ours)).names() == ["epochs"]


def load_options(server: S3Server) -> Any:
    from pipelines.storage.folder import StorageOptions

    return StorageOptions(server.endpoint_url)


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_a_device_that_no_node_has(cluster: TwoNodes, tmp_path: Path) -> None:
    job = write_job(tmp_path, f"{tmp_path}/out", more="model: {device: cuda}\n")
    (line,) = refused(cluster, "run", job)
    assert ":5:17: model.device is cuda, a CUDA device, and the nodes that are up have none" in line


# no cluster


def test_a_local_ray_of_our_own_is_not_asked(ray_cluster: Any, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    with probe_object(run) as proof:
        found = ask_every_node(run, proof, str(tmp_path / "none.csv"))
    assert found.own
    assert (found.faults, found.silent, found.devices) == ((), (), None)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the folder from which it is run, with an output relative to that."""
    monkeypatch.chdir(tmp_path)
    return write_job(tmp_path, "out")


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["validate", "run"])
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_device_that_this_machine_lacks(
    ray_cluster: Any, job: Path, verb: str, device: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    has = 2 if ":" in device else 0
    monkeypatch.setattr("pipelines.cluster.nodes.cuda_devices", lambda: has)
    assert main([verb, str(job), "-s", f"model.device={device}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    what = "2 of them at most" if has else "none that torch can use"
    assert line.startswith(f"error: --set model.device={device}: model.device is {device}, a CUDA device, and this")
    assert f"machine has {what}" in line
    assert RunFolder("out").generations() == []


@pytest.mark.parametrize(
    ("found", "num_gpus", "refused"),
    [
        (Preflight(workers=1, devices=0), "auto", True),
        (Preflight(workers=1, devices=0), 1, True),
        (Preflight(workers=1, devices=1), "auto", False),
        (Preflight(workers=0, devices=0), "auto", False),
        (Preflight(workers=1, devices=0, autoscaled=True), "auto", False),
        (Preflight(workers=1, devices=0, autoscaled=True), 1, False),
        (Preflight(workers=1, devices=0, autoscaled=True), 0, True),
        (Preflight(own=True, devices=0), 0, True),
    ],
)
def test_a_device_may_still_come(
    job: Path, found: Preflight, num_gpus: str | int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.steps.check_nodes.ask_every_node", lambda *_: found)
    read = load_job(str(job), ("model.device=cuda", f"pools.0.num_gpus={num_gpus}"))
    run: Any = None
    with pytest.raises(ConfigError) if refused else nullcontext():
        check_nodes(Console(), read, run, run)


def test_nodes_that_do_not_answer_are_named_and_bar_only_where_none_does(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = Preflight(workers=2, silent=("host b could not be asked what it sees: no answer within 60 s",))
    monkeypatch.setattr("jobs.steps.check_nodes.ask_every_node", lambda *_: silent)
    run: Any = None
    check_nodes(Console(), load_job(str(job)), run, run)
    assert "host b could not be asked what it sees: no answer within 60 s; its workers will" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["", "output.path=here", "output.path=file://here", "output.path=./runs/x"])
@pytest.mark.parametrize("verb", ["validate", "plan", "run", "render"])
def test_a_submitted_job_names_a_folder_that_stays(
    job: Path, path: str, verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SUBMITTED, "{}")
    monkeypatch.setattr("jobs.steps.checking.start_ray", lambda *_: None)
    monkeypatch.setattr("jobs.steps.checking.check_input", lambda *_: {})
    if not path:
        job.write_text(job.read_text().replace("output: {path: out}\n", ""))
    assert main([verb, str(job), *(["-s", path] if path else [])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "lies in Ray's own copy of the working directory, which Ray deletes" in line
    assert "give an absolute path on a disk that every machine mounts, or s3://bucket/..." in line
    assert {found.name for found in Path().iterdir()} == {"job.yaml", "prompts.csv"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_that_ray_job_submit_starts(job: Path) -> None:
    job.write_text(job.read_text().replace("output: {path: out}\n", ""))
    cluster = TwoNodes("")
    try:
        address = cluster.start_submittable_head()
        command = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--"]
        command += [sys.executable, "-m", "jobs", "run", str(job)]
        ended = subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=300, check=False)
    finally:
        cluster.close()
    assert ended.returncode == 1, ended.stderr
    assert "failed with exit code 2" in ended.stdout
    assert f"error: {job}:1:1: output.path runs/job lies in Ray's own copy of the working directory" in ended.stdout
    assert "Traceback" not in ended.stdout


def test_an_absolute_path_in_rays_copy_is_no_better(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.steps.checking.start_ray", lambda *_: None)
    monkeypatch.setattr("jobs.steps.checking.check_input", lambda *_: {})
    copy = Path("session/runtime_resources/working_dir_files/_ray_pkg_1").resolve()
    copy.mkdir(parents=True)
    assert main(["validate", str(job), "-s", f"output.path={copy}/out"]) == 2
    assert "which Ray deletes" in capsys.readouterr().err
    assert list(copy.iterdir()) == []
    refuse_rays_copy(load_job(str(job), (f"output.path={job.parent}/out",)))
    monkeypatch.setenv(SUBMITTED, "{}")
    refuse_rays_copy(load_job(str(job), (f"output.path={job.parent}/out",)))
    refuse_rays_copy(load_job(str(job), ("output.path=s3://bucket/runs/x",)))
    monkeypatch.delenv(SUBMITTED)
    refuse_rays_copy(load_job(str(job), ("output.path=runs/x",)))


@pytest.mark.parametrize("interrupted", [False, True])
def test_rows_without_an_end_are_never_done(
    job: Path, interrupted: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last net: whatever the renderer says, the manifests are counted."""
    run = RunFolder(str(job.parent / "out"))
    counts = {"rows": 5, "failed_rows": 0, "shards": 1, "lane_steps": 0, "largest_budget": 20, "budget_histogram": {}}
    plan = Plan(run, (Generation(1, counts | {"manifest_schema": schema_to_json(manifest_schema(pa.schema([])))}),))
    nothing = RenderResult(0, 0, None, None, None, None, None, None, 1.0, 1.0, None, interrupted)
    monkeypatch.setattr("jobs.steps.rendering.render", lambda *_, **__: nothing)
    interrupts = SimpleNamespace(graceful=False, exit_code=130 if interrupted else None)
    epoch = claim(run)
    stop: Any = SimpleNamespace(interrupts=interrupts, epoch=epoch)
    console = Console()
    console.json = True
    code = render_job(console, resolve(load_job(str(job))), plan, stop)
    said = capsys.readouterr()
    assert code == (130 if interrupted else 1)
    assert json.loads(said.out)["status"] == ("interrupted" if interrupted else "incomplete")
    assert said.err == (
        ""
        if interrupted
        else "error: 5 of 5 planned rows have not ended, though nothing interrupted the run: "
        f"`python -m jobs verify {run.url}` names them, the same command renders what is missing\n"
    )
    assert json.loads(run.read("summary.json"))["rows"] == 0


def test_a_listing_is_of_names_sizes_and_bytes_not_of_times(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "deep").mkdir(parents=True)
        (folder / "a.csv").write_text("prompt\n" + "x\n" * 200_000)
        (folder / "deep" / "b.csv").write_text("prompt\nb\n")
    os.utime(two / "a.csv", (1, 1))
    same = listing(str(one), "/nowhere")
    assert same == listing(str(two), "/nowhere")
    assert str(same) == "2 files of 400,016 bytes"
    (two / ".hidden").write_text("")
    (two / "runs").mkdir()
    (two / "runs" / "beat").write_text("")
    assert same == listing(str(two), str(two / "runs"))
    with (two / "a.csv").open("r+") as file:
        file.seek(399_000)
        file.write("y")
    assert same != listing(str(two), str(two / "runs"))
    assert listing(str(one / "a.csv"), "/nowhere").files == 1
    assert listing(f"{one}/**/*.csv", "/nowhere").files == 2
    assert str(listing(str(tmp_path / "none"), "/nowhere")) == "nothing"


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_a_run_on_nodes_that_share_ends_with_every_row(cluster: TwoNodes, tmp_path: Path) -> None:
    job = write_job(tmp_path, f"{tmp_path}/out")
    code, said = cluster.jobs("run", job)
    assert code == 0, said
    assert NOBODY not in said
    assert [table.num_rows for table in RunFolder(f"{tmp_path}/out").manifests()] == [2]
