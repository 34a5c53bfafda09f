"""Whole commands: marks by default, runs planned before there were any, signed runs, what is refused at the start."""

import json
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.job_file.keys import UNMARKED, changed_picture_keys
from jobs.job_file.positions import ConfigError
from jobs.job_file.provenance import provenance_config
from jobs.job_file.read import read_job
from jobs.job_file.settings import read_checkpoint, resolve
from pipelines.render.marks import MADE_BY_AI
from pipelines.run.layout import RunFolder, manifest_key, parquet_bytes
from pipelines.run.schema import schema_from_json, schema_to_json
from tests.certificates import write_chain
from tests.checkpoints import make_checkpoint
from tests.marked import made_from, xmp
from tests.test_repair_cli import rows, typed

JOB = """\
model: {path: MODEL, device: cpu}
input: {path: prompts.csv}
steps: {selector: fixed, fixed: 2}
pools: [{name: default, lanes: 4}]
output: {path: run}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint("sd1", tmp_path_factory.mktemp("secret-customer") / "sd1"))


@pytest.fixture
def run(tmp_path: Path, model: str, sleeping, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    prompts(6)
    Path("job.yaml").write_text(JOB.replace("MODEL", model))
    return RunFolder("run")


def prompts(count: int) -> None:
    Path("prompts.csv").write_text("prompt\n" + "".join(f"a fox number {i}\n" for i in range(count)))


def before_marks(run: RunFolder) -> None:
    """Makes the run one of a version that knew neither marks nor signatures."""
    for number in run.generations():
        document = run.read_plan(number)
        found = {key: each for key, each in document["fingerprint"].items() if not key.startswith("provenance.")}
        schema = schema_from_json(document["manifest_schema"])
        old = schema.remove(schema.get_field_index("signed_bytes"))
        old = old.remove(old.get_field_index("signed_sha256"))
        changed = document | {"fingerprint": found, "manifest_schema": schema_to_json(old)}
        run.write(f"plan/{number:04d}/plan.json", json.dumps(changed).encode())
    for shard in run.done_shards():
        table = run.read_manifest(shard).drop_columns(["signed_bytes", "signed_sha256"])
        run.write(manifest_key(shard), parquet_bytes([table]))
    text = run.job_yaml() or ""
    start = text.index("provenance:")
    run.write_job(text[:start] + text[text.index("storage:", start + 1) :])


@pytest.mark.ray
def test_pictures_are_marked_by_default_and_name_no_private_folder(ray_cluster, run: RunFolder, capsys) -> None:
    assert typed(capsys, "run", "job.yaml")[0] == 0
    found = rows(run)
    assert len(found) == 6
    for row in found.values():
        data = run.read(row["uri"])
        assert xmp(data)["Iptc4xmpExt:DigitalSourceType"] == MADE_BY_AI
        assert (made_from(data)["prompt"], made_from(data)["model"]) == (row["prompt"], "sd1")
        assert b"secret-customer" not in data
    assert typed(capsys, "verify", "run", "--full")[0] == 0
    assert "data:image/jpeg;base64" in run.read("report.html").decode()


@pytest.mark.ray
def test_a_run_from_before_marks_goes_on_unmarked_and_says_so_once(ray_cluster, run: RunFolder, capsys) -> None:
    off = ("-s", "provenance.iptc=false", "-s", "provenance.parameters=false")
    assert typed(capsys, "run", "job.yaml", *off)[0] == 0
    before_marks(run)
    first = rows(run)
    lost = next(iter(first.values()))
    for turn in (8, 10):  # the plan grows twice: then its newest generation knows the keys, and its first does not
        prompts(turn)
        assert main(["run", "job.yaml", "--json"]) == 0
        err = capsys.readouterr().err
        assert err.count("planned by a version without marks: its pictures stay unmarked") == 1
        found = rows(run)
        assert len(found) == turn
        assert [xmp(run.read(row["uri"])) for row in found.values()] == [{}] * turn
    run.delete([lost["uri"]])
    code, told = typed(capsys, "repair", "run", "--full", "--delete-orphans")
    assert (code, told["repaired"]["same_bytes"]) == (0, 1)
    assert rows(run)[lost["id"]]["sha256"] == lost["sha256"]
    assert typed(capsys, "verify", "run", "--full")[0] == 0
    assert main(["run", "job.yaml", "-s", "provenance.iptc=true"]) == 2
    err = capsys.readouterr().err
    assert "--set provenance.iptc=true: provenance.iptc was False in this run and is True now" in err


@pytest.mark.ray
@pytest.mark.parametrize("layout", ["files", "webdataset", "parquet"])
def test_a_signed_run_is_repaired_verified_and_goes_on_with_another_certificate(
    ray_cluster, run: RunFolder, capsys, tmp_path: Path, layout: str
) -> None:
    def signing(folder: str) -> tuple[str, ...]:
        paths = write_chain(tmp_path / folder)
        sets = [f"provenance.c2pa.{name}={path}" for name, path in paths.items()]
        return ("-s", f"output.layout={layout}", *(word for each in sets for word in ("-s", each)))

    assert typed(capsys, "run", "job.yaml", *signing("old"))[0] == 0
    first = rows(run)
    assert all(row["signed_bytes"] > row["bytes"] for row in first.values())
    lost = next(iter(first.values()))
    run.delete([lost["uri"].partition("#")[0]])
    code, told = typed(capsys, "repair", "run", "--full", "--delete-orphans")
    assert (code, told["left"], told["repaired"]["other_bytes"]) == (0, {}, 0)
    assert told["repaired"]["same_bytes"] == (1 if layout == "files" else 6)
    again = rows(run)
    assert {id: row["sha256"] for id, row in again.items()} == {id: row["sha256"] for id, row in first.items()}
    assert again[lost["id"]]["signed_sha256"] != lost["signed_sha256"]
    prompts(7)
    assert typed(capsys, "run", "job.yaml", *signing("new"))[0] == 0
    assert len(rows(run)) == 7
    code, told = typed(capsys, "verify", "run", "--full")
    assert (code, told["images_equal"], told["found"]) == (0, 7, {})
    assert main(["run", "job.yaml", "-s", f"output.layout={layout}"]) == 2
    assert "provenance.c2pa was {} in this run and is None now" in capsys.readouterr().err


REFUSED = {
    "missing": ({}, "the private_key at ", " cannot be read: No such file or directory"),
    "expired": ({"days": (-9, -1)}, "the certificate expired on ", ": renew it"),
    "no right": ({"signs": False}, "the certificate has no right to sign", "for example emailProtection"),
}


@pytest.mark.parametrize("verb", ["run", "plan", "validate"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_sign_is_one_line_before_the_start(
    run: RunFolder, capsys, tmp_path: Path, case: str, verb: str
) -> None:
    options, start, end = REFUSED[case]
    paths = write_chain(tmp_path / "keys", **options)
    if case == "missing":
        Path(paths["private_key"]).unlink()
    text = f"provenance: {{c2pa: {{certificate: {paths['certificate']}, private_key: {paths['private_key']}}}}}\n"
    Path("job.yaml").write_text(Path("job.yaml").read_text() + text)
    assert main([verb, "job.yaml"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "provenance" in line]
    (line,) = errors
    assert line.startswith(f"error: job.yaml:6:20: provenance.c2pa: {start}")
    assert line.endswith(end)
    assert run.generations() == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{c2pa: {private_key: '-----BEGIN PRIVATE KEY----- abc'}}", "holds a certificate or a key itself"),
        ("{c2pa: {certificate: 's3://bucket/chain.pem'}}", "must be the path of a file on each machine"),
        ("{c2pa: {timestamps: 'ftp://x'}}", "must be a URL like"),
        ("{c2pa: {timestamps: 'http://me:word@x/'}}", "holds a user name or password"),
        ("{stamp: logo}", "must be the import path of a function"),
        ("{iptc: 1}", "must be true or false"),
        ("{exif: true}", "unknown key provenance.exif"),
    ],
)
def test_wrong_keys_are_told_without_their_secret(given: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_job(f"input: {{path: p}}\nprovenance: {given}", "j.yaml")
    assert said in str(error.value)
    assert "abc" not in str(error.value)
    assert "word" not in str(error.value).replace("password", "")


def test_the_fingerprint_has_what_is_done_and_not_who_signs() -> None:
    def job(text: str) -> dict:
        return dict(read_job(f"input: {{path: p}}\nprovenance: {text}", "j.yaml").config.fingerprint())

    plain, one = job("{}"), job("{c2pa: {certificate: a, private_key: b}}")
    assert {key: each for key, each in plain.items() if key.startswith("provenance.")} == {
        "provenance.iptc": True,
        "provenance.parameters": True,
        "provenance.c2pa": None,
        "provenance.stamp": None,
    }
    assert changed_picture_keys(one, job("{c2pa: {certificate: c}}")) == {}
    assert changed_picture_keys(plain, one) == {"provenance.c2pa": (None, {})}
    assert changed_picture_keys(plain, job("{stamp: 'm:f'}")) == {"provenance.stamp": (None, "m:f")}
    old = {key: each for key, each in plain.items() if not key.startswith("provenance.")}
    assert changed_picture_keys(old, plain) == dict.fromkeys(UNMARKED, (False, True))


def test_the_settings_name_the_model_by_its_last_name(model: str, tmp_path: Path) -> None:
    text = (
        f"input: {{path: p}}\nmodel: {{path: {model}}}\nsampling: {{solver: dpmpp_2m, guidance_interval: [0.1, 0.9]}}"
    )
    job = read_job(f"{text}\noutput: {{path: {tmp_path}/run}}", "j.yaml")
    marks = resolve(job).render.provenance.marks
    assert (marks.iptc, marks.parameters, marks.model, marks.solver) == (True, True, "sd1", "dpmpp_2m")
    assert marks.guidance_interval == (0.1, 0.9)
    assert marks.model_hash == read_checkpoint(job).fingerprint
    assert provenance_config(job, read_checkpoint(job), "s3://private").marks.model == ""
