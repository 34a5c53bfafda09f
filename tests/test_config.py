"""The job file: defaults, kinds, and every fault at once with its place and a way out."""

import itertools
from typing import Any

import pytest
from pydantic import BaseModel

from jobs.job_file.contradictions import idle
from jobs.job_file.keys import KINDS, JobConfig, Section, changed_picture_keys, leaf_kinds
from jobs.job_file.positions import ConfigError
from jobs.job_file.read import load_job, read_job
from jobs.job_file.scorers import scorer_sources
from tests.plans import brightness

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in itertools.pairwise("abcdef")
)


def job(text: str = "", *sets: str, name: str = "job.yaml", limit: int | None = None) -> JobConfig:
    return read_job(text or "input: {path: prompts.csv}", name, sets, limit).config


def faults(text: str, *sets: str, limit: int | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_job(text, "job.yaml", sets, limit)
    return str(caught.value).splitlines()


def fault(*sets: str) -> str:
    (only,) = faults("input: {path: prompts.csv}", *sets)
    return only


def test_the_contracts_defaults() -> None:
    config = job(name="campaigns/spring.yaml")
    assert config.model_dump(exclude={"train", "evaluate"}) == {
        "version": 1,
        "model": {"path": None, "revision": None, "variant": None, "dtype": "auto", "device": "auto"},
        "input": {
            "path": "prompts.csv",
            "columns": {},
            "drop": [],
            "encoding": "utf-8",
            "csv": {"delimiter": ",", "quotes": None, "skip_spaces": None},
            "images_per_prompt": 1,
            "limit": None,
            "strict": False,
            "changed": "refuse",
            "storage": None,
        },
        "steps": {
            "choices": None,
            "selector": "policy",
            "fixed": None,
            "policy": None,
            "price": 0.3,
            "min": None,
            "max": None,
            "decision": "argmax",
            "actors": 1,
            "num_gpus": 0,
        },
        "sampling": {
            "solver": "ddim",
            "guidance_scale": 7.5,
            "guidance_interval": None,
            "width": None,
            "height": None,
            "timestep_spacing": None,
            "compile": False,
            "channels_last": None,
        },
        "quality": [],
        "safety": None,
        "tries": {"max": 1, "bar": "auto", "scores": None, "keep": False},
        "pools": [
            {
                "name": "default",
                "budgets": "all",
                "actors": 1,
                "num_gpus": "auto",
                "num_cpus": 1,
                "lanes": "auto",
                "resources": {},
            }
        ],
        "output": {"path": "runs/spring", "layout": "files", "format": "png", "storage": None},
        "provenance": {"iptc": True, "parameters": True, "c2pa": None, "stamp": None},
        "storage": {
            "endpoint_url": None,
            "region": None,
            "addressing_style": None,
            "anonymous": False,
            "put_options": {},
        },
        "failures": {"max_fraction": 0.01, "stop_early": True, "row_timeout_s": 900.0, "no_progress_s": 3600.0},
    }


def sections(model: type[BaseModel]) -> list[type[Section]]:
    return [found for child in Section.__subclasses__() for found in [child, *child.__subclasses__()]]


@pytest.mark.parametrize("section", sections(Section), ids=lambda section: section.__name__)
def test_every_leaf_has_a_kind_and_every_field_of_one_a_description(section: type[BaseModel]) -> None:
    for name, info in section.model_fields.items():
        if isinstance(info.json_schema_extra, dict):
            assert info.json_schema_extra["kind"] in KINDS, name
            assert info.description, name
            assert len(info.description) > 10, name


def test_kinds_are_those_of_the_contract() -> None:
    kinds = leaf_kinds()
    assert set(kinds.values()) == set(KINDS)
    assert [key for key, kind in kinds.items() if kind == "price"] == ["steps.price"]
    execution = {key for key, kind in kinds.items() if kind == "execution"}
    assert {"model.device", "input.limit", "steps.actors", "steps.num_gpus", "pools.lanes", "pools.actors"} < execution
    assert {"storage.endpoint_url", "failures.max_fraction", "output.path", "output.storage.region"} < execution
    assert {"model.dtype", "input.columns", "steps.choices", "sampling.solver", "output.format"}.isdisjoint(execution)


def test_the_schema_names_each_leafs_kind() -> None:
    schema = JobConfig.model_json_schema()
    assert schema["$defs"]["StepBudgets"]["properties"]["price"]["kind"] == "price"
    assert schema["$defs"]["Storage"]["additionalProperties"] is False


def test_the_resolved_file_reads_back_equal() -> None:
    config = job("", "pools.0.actors=3", "steps={selector: fixed, fixed: 20}", "input.columns={prompt: Ünï}")
    again = read_job(config.dump(), "elsewhere.yaml").config
    assert again == config
    assert again.output.path == "runs/job"
    assert again.pools[0].actors == 3


def test_the_fingerprint_holds_picture_keys_only() -> None:
    one = job()
    same = job("", "pools.0.actors=4", "steps.price=1", "input.limit=3", "model.device=cpu", "output.path=x")
    other = job("", "sampling.guidance_scale=3", "steps.choices=[5, 10]")
    assert changed_picture_keys(one.fingerprint(), same.fingerprint()) == {}
    assert changed_picture_keys(one.fingerprint(), other.fingerprint()) == {
        "sampling.guidance_scale": (7.5, 3.0),
        "steps.choices": (None, [5, 10]),
    }


def test_a_fingerprint_from_before_a_key_existed_had_its_default() -> None:
    new = job().fingerprint()
    old = {key: value for key, value in new.items() if key != "sampling.solver"}
    assert changed_picture_keys(old, new) == {}
    assert changed_picture_keys(old, new | {"sampling.solver": "dpmpp_2m"}) == {"sampling.solver": ("ddim", "dpmpp_2m")}


def test_all_faults_at_once_each_with_its_place() -> None:
    text = """\
mdoel: {path: x}
input: {path: prompts.csv, seed: -1}
steps:
  chioces: [5, 10]
  selector: polcy
  min: 30
  max: 20
sampling: {width: 500, guidance_scale: .inf}
pools:
  - {name: a, budgets: [], num_gpus: -1}
output: {format: jpg}
"""
    assert faults(text, "steps.price=high") == [
        "job.yaml:1:1: unknown key mdoel; did you mean model?",
        "job.yaml:2:28: unknown key input.seed",
        "job.yaml:4:3: unknown key steps.chioces; did you mean steps.choices?",
        "job.yaml:5:13: steps.selector must be 'fixed', 'words' or 'policy', got 'polcy'; did you mean policy?",
        "job.yaml:6:8: steps.min 30 is above steps.max 20",
        "job.yaml:8:19: sampling.width must be a multiple of 8, got 500",
        "job.yaml:8:40: sampling.guidance_scale must be a finite number, got inf",
        "job.yaml:10:24: pools.0.budgets must be 'all' or at least 1 of them, got []",
        "job.yaml:10:38: pools.0.num_gpus must be 'auto' or 0 or more, got -1",
        "job.yaml:11:18: output.format must be 'png', 'jpeg' or 'webp', got 'jpg'; did you mean jpeg?",
        "--set steps.price=high: steps.price must be a number, got 'high'",
    ]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("steps.fixed=0", "1 or more"),
        ("steps.fixed=1001", "1000 or less"),
        ("steps.choices=[5, 5]", "steps.choices 5 stands there twice: each recipe once"),
        ("steps.choices=[]", "at least 1"),
        ("steps.choices=[5, 1001]", "steps.choices.1 must be 1000 or less"),
        ("steps.price=-0.1", "0 or more"),
        ("steps.price=true", "must be a number, got true"),
        ("steps.price='0.3'", "must be a number, got '0.3'"),
        ("steps.selector=fixed", "needs steps.fixed"),
        ("steps.fixed=20", "needs steps.selector: fixed"),
        ("sampling.height=12.5", "a whole number"),
        ("sampling.height=8192", "4096 or less"),
        ("sampling.guidance_scale=-1", "0 or more"),
        ("sampling.guidance_scale=.nan", "got nan"),
        ("sampling.guidance_interval=[0.8, 0.2]", "start must lie before the end"),
        ("sampling.guidance_interval=[0.8]", "at least 2"),
        ("sampling.guidance_interval=[0.2, 1.5]", "1 or less"),
        ("sampling.steps=20", "unknown key sampling.steps; did you mean steps?"),
        ("sampling.path=x", "did you mean model.path?"),
        ("pools=[]", "at least 1"),
        ("pools.0.lanes=1", "'auto' or 2 or more"),
        ("pools.0.actors={min: 1, max: 2}", "pools.0.actors must be a whole number"),
        ("pools.0.actors=0", "pools.0.actors must be 1 or more"),
        ("pools.0.actors=many", "pools.0.actors must be a whole number"),
        ("output.layout=zip", "'files', 'webdataset', 'parquet' or 'none'"),
        ("storage.endpoint_url=localhost:9000", "must be a URL like https://"),
        ("model.device=gpu", "got 'gpu'"),
        ("failures.max_fraction=2", "1 or less"),
        ("failures=3", "must be a mapping"),
        ("version=2", "version must be 1, got 2"),
        ("input.path=", "must be a text, got nothing"),
        ("input.path=''", "at least 1 character"),
        ("pools.3.name=x", "there is no 3"),
        ("pools.name=x", "no index of a list"),
        ("input.path.x=1", "input.path is no mapping"),
        ("steps.price", "write it as section.key=value"),
        ("steps.price={", "not YAML"),
    ],
)
def test_a_bad_value_is_named_with_the_set_that_gave_it(setting: str, words: str) -> None:
    found = [line for line in faults("input: {path: p}\npools: [{name: a}]", setting) if words in line]
    assert found, faults("input: {path: p}\npools: [{name: a}]", setting)
    assert found[0].startswith(f"--set {setting}: ")


def test_limit_is_named_as_it_was_typed() -> None:
    assert job(limit=10).input.limit == 10
    assert faults("input: {path: p}", limit=0) == ["--limit 0: input.limit must be 1 or more, got 0"]


def test_set_wins_over_the_file_and_the_last_set_over_the_first() -> None:
    config = job(
        "input: {path: p}\nsteps: {price: 1}\npools: [{name: a, lanes: 4}, {name: b}]",
        "steps.price=2",
        "steps.price=1e-3",
        "pools.1.actors=3",
        "pools.2={name: c}",
    )
    assert config.steps.price == 0.001
    assert [(pool.name, pool.actors, pool.lanes) for pool in config.pools] == [
        ("a", 1, 4),
        ("b", 3, "auto"),
        ("c", 1, "auto"),
    ]


def test_a_fault_below_a_set_value_is_the_sets_not_the_files() -> None:
    (line,) = faults("input: {path: p}\nsteps:\n  price: -1", "steps={price: -2}")
    assert line == "--set steps={price: -2}: steps.price must be 0 or more, got -2"


def test_contradictions_show_beside_other_faults_unless_they_rest_on_one() -> None:
    text = "input: {path: p}\nsteps: {min: 30, max: 20, price: x}\npools: [{name: a}, {name: a}]"
    assert [line.split(": ")[0] for line in faults(text)] == ["job.yaml:2:14", "job.yaml:2:34", "job.yaml:3:27"]
    assert len(faults("input: {path: p}\nsteps: {min: 30, max: x}")) == 1
    assert len(faults("input: {path: p}\npools: [{name: a}, {lanes: 2}]")) == 1


def test_budgets_that_no_pool_serves() -> None:
    steps = "input: {path: p}\nsteps: {selector: words, choices: [5, 10, 20], max: 10}\n"
    assert (
        read_job(steps + "pools: [{name: a, budgets: [5]}, {name: b, budgets: [10, 20]}]", "j.yaml")
        .config.pools[0]
        .name
    )
    assert faults(steps + "pools: [{name: a, budgets: [5]}]") == [
        "job.yaml:3:8: no pool serves the budgets 10: add them to a pool, or `budgets: all`"
    ]


def test_a_pool_that_serves_none_of_the_jobs_budgets() -> None:
    pools = read_job("input: {path: p}\npools: [{name: a}, {name: b, budgets: [50]}]", "j.yaml").config.pools
    ((keys, message),) = idle(pools, [5, 10])
    assert keys[0] == ("pools", 1, "budgets")
    assert "'b' serves no budget of this job (5, 10)" in message
    assert list(idle(pools, [5, 10, 50])) == []


def test_a_key_given_twice_is_a_fault() -> None:
    assert faults("input: {path: p}\nsteps:\n  price: 1\n  price: 2") == [
        "job.yaml:4:3: steps.price is given twice; first at job.yaml:3:3"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "storage: {aws_secret_access_key: hunter2}",
        "storage: {key: hunter2}",
        "output: {storage: {token: hunter2}}",
        "storage: {endpoint_url: 'http://me:hunter2@host'}",
        "storage: {put_options: {SSECustomerKey: hunter2}}",
        "output: {path: 's3://AKIA:hunter2@bucket/run'}",
    ],
)
def test_credentials_are_refused_and_never_repeated(line: str) -> None:
    (message,) = faults(f"input: {{path: p}}\n{line}")
    assert "hunter2" not in message
    assert message.startswith("job.yaml:2:")
    assert "chain" in message or "never in a job file" in message


@pytest.mark.parametrize("setting", ["storage.secret_key=hunter2", "output.path=s3://AKIA:hunter2@bucket"])
def test_credentials_of_a_set_are_not_repeated_either(setting: str) -> None:
    assert "hunter2" not in fault(setting)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: [", "not YAML"),
        ("- a\n- b", "a job file is a mapping"),
        ("just words", "a job file is a mapping"),
        ("", "input is missing"),
        ("input: {path: p}\n1: x", "a key must be a word, got 1"),
        ("input: {path: p}\n? [a, b]\n: x", "a key must be a word"),
        ("input: &a\n  path: *a", "leads back to itself"),
        (BOMB, "too many"),
        ("input: !!python/object:os.system {path: p}", "means nothing here"),
        ("input: {path: 2024-99-99}", "cannot be read as YAML"),
        ("input: {path: p}\x00", "not YAML"),
        ("[" * 3000, "nested too deep|not YAML"),
        ("input: {path: p}\n---\ninput: {path: q}", "not YAML"),
    ],
)
def test_a_file_that_is_no_job_file_gets_a_message(text: str, words: str) -> None:
    message = "\n".join(faults(text))
    assert any(word in message for word in words.split("|")), message


def test_merge_keys_and_anchors_are_yaml() -> None:
    text = "x: &s {region: eu}\ninput: {path: p, storage: *s}\noutput: {storage: {<<: *s, region: us}}"
    assert faults(text) == ["job.yaml:1:1: unknown key x"]
    config = read_job(text.replace("x: &s", "storage: &s"), "j.yaml").config
    assert config.output.storage is not None
    assert (config.storage.region, config.output.storage.region) == ("eu", "us")


def test_files_that_cannot_be_read(tmp_path: Any) -> None:
    for name, data in {"latin.yaml": b"input: {path: \xff}", "huge.yaml": b"#" * (1 << 20) + b"##"}.items():
        (tmp_path / name).write_bytes(data)
    for name, words in {
        "latin.yaml": "not UTF-8",
        "huge.yaml": "larger than",
        "none.yaml": "jobs init",
        "": "director",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load_job(str(tmp_path / name))


QUALITY_JOB = """\
input: {path: prompts.csv}
quality:
  - {scorer: clip, path: s3://bucket/clip, weight: 0.7}
  - {scorer: tests.plans:brightness, weight: 0}
  - SCORER
"""


def scorers(scorer: str) -> tuple:
    return scorer_sources(read_job(QUALITY_JOB.replace("SCORER", scorer), "job.yaml"))


def test_scorers_get_what_the_job_file_says() -> None:
    clip, bright, same = scorers("{scorer: fidelity, name: same}")
    assert (clip.name, clip.kind, clip.weight, clip.model.path) == ("clip", "clip", 0.7, "s3://bucket/clip")
    assert (bright.name, bright.kind, bright.function) == ("tests.plans.brightness", "function", brightness)
    assert (same.name, same.kind, same.model) == ("same", "fidelity", None)


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ("{scorer: clip}", "job.yaml:5:5: quality.2: clip needs path"),
        ("{scorer: aesthetic, path: clip}", "job.yaml:5:5: quality.2: aesthetic needs head"),
        ("{scorer: nowhere.at.all:score}", "job.yaml:5:5: quality.2: there is no nowhere.at.all:score"),
        ("{scorer: tests.plans:nothing}", "job.yaml:5:5: quality.2: there is no tests.plans:nothing"),
        ("{scorer: beauty}", "job.yaml:5:14: quality.2.scorer must be clip, aesthetic, fidelity or the import path"),
    ],
)
def test_a_scorer_that_cannot_be_is_named(scorer: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        scorers(scorer)
    assert str(raised.value.faults[0]).startswith(message)
