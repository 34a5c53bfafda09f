"""The house itself: who may import whom, what is installed, what a file owes its reader, and the files for others."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ROOMS = ("actors", "pipelines", "training", "jobs")
OURS = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def test_the_layers_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_no_installed_distribution_provides_our_rooms() -> None:
    """Else an older install would be run in place of the working directory."""
    installed = packages_distributions()
    assert {room: installed[room] for room in ROOMS if room in installed} == {}


def test_at_most_two_broad_excepts() -> None:
    """Around one row, and at the boundary of what must go on: a worker's shard, a thread that has to live."""
    broad = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in OURS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and is_broad(node.type)
    ]
    assert len(broad) <= 2, broad


def is_broad(caught: ast.expr | None) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(
        name is None or (isinstance(name, ast.Name) and name.id in ("Exception", "BaseException")) for name in names
    )


def test_the_broad_except_check_sees_one() -> None:
    source = "try:\n    pass\nexcept (ValueError, Exception):\n    pass\ntry:\n    pass\nexcept:\n    pass"
    handlers = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler)]
    assert [is_broad(handler.type) for handler in handlers] == [True, True]


def test_logging_is_set_up_in_jobs_alone() -> None:
    calls = re.compile(r"logging\.(basicConfig|disable)\(|\bprint\(")
    found = [
        str(path)
        for path in OURS
        if path.relative_to(ROOT).parts[0] in ("actors", "pipelines") and calls.search(path.read_text("utf-8"))
    ]
    assert found == []


def test_the_command_line_imports_no_room_before_a_verb_runs() -> None:
    """Torch and Ray take seconds; a `--help` takes none."""
    code = (
        "import sys, jobs.__main__ as main\n"
        "for verb in main.VERBS: main.cli.get_command(None, verb)\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'numpy', 'diffusers', 'pipelines', 'actors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_the_list_of_verbs_costs_no_job_file() -> None:
    """pydantic takes longer than all else that `python -m jobs --help` does."""
    code = "import sys, jobs.__main__; assert 'pydantic' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_constraints_pin_every_requirement() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").split()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[A-Za-z0-9-]+", requirement).group() for requirement in wanted}  # type: ignore[union-attr]
    assert names - {project["name"]} <= pinned


def commands(text: str) -> set[str]:
    """Verbs and make targets that a page tells its reader to type."""
    verbs = {f"jobs {verb}" for verb in re.findall(r"python -m jobs ([a-z]+)", text)}
    return verbs | {f"make {target}" for target in re.findall(r"^\s*(?:\$ )?make ([a-z-]+)", text, re.MULTILINE)}


def test_every_command_of_the_readme_exists() -> None:
    readme = ROOT / "README.md"
    from jobs.__main__ import VERBS

    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    known = {f"jobs {verb}" for verb in VERBS} | {f"make {target}" for target in targets}
    assert commands(readme.read_text("utf-8")) <= known


def test_the_job_files_of_the_readme_are_valid() -> None:
    from jobs.job_file.read import read_job

    for text in re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL):
        assert read_job(text, "README.yaml").config


def test_every_file_of_the_map_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`((?:actors|pipelines|training|jobs|tests)/[\w/]+\.py)`", text)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_commands_are_found_in_a_page() -> None:
    assert commands("`python -m jobs rnu x`\n\n    $ make demo\n    make tset") == {
        "jobs rnu",
        "make demo",
        "make tset",
    }


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))


def test_cluster_yaml_is_valid_for_ray_up(cluster: dict[str, Any]) -> None:
    import jsonschema
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
    jsonschema.validate(cluster, json.loads(schema.read_text("utf-8")))
    validate_config(prepare_config(cluster))


def test_cluster_yaml_asks_for_what_the_design_asks(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}
    gpu = {name for name, kind in types.items() if kind["resources"].get("GPU")}
    assert cluster["head_node_type"] not in spot
    assert spot == gpu
    assert set(types) - gpu - {cluster["head_node_type"]}
    assert all(kind.get("max_workers", 0) <= cluster["max_workers"] for kind in types.values())
    assert "ray:2.60.0" in cluster["docker"]["image"]


@pytest.mark.parametrize("name", ["cluster.yaml", "Makefile", "constraints.txt", ".ci/run"])
def test_no_secret_and_no_registry_host_in_files_for_others(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert not re.search(r"AKIA[0-9A-Z]{16}|secret_access_key|index-url|find-links|pypi\.", text, re.IGNORECASE)
