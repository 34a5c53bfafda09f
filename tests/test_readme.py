"""The README's own commands, each block copied and run in a shell; and what is said where they cannot run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("jobs", "policy", "run-folder", "cluster"))]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(text: str) -> list[str]:
    """The commands of each console block, a line each."""
    found = [re.findall(r"^\$ (.*)$", block, re.MULTILINE) for block in re.findall(r"```console\n(.*?)```", text, re.S)]
    return ["\n".join(lines) for lines in found if lines]


def copy_of_the_project(folder: Path) -> Path:
    """What git knows, as it is now, with this environment; times are kept, so that make finds it installed."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, names):
        path, there = Path(os.fsdecode(name)), folder / os.fsdecode(name)
        if (ROOT / path).is_file():
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes((ROOT / path).read_bytes())
            os.utime(there, (0, 0))
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def test_blocks_are_found() -> None:
    assert blocks("```console\n$ make demo\nsaid\n$ ls\n```\n```sh\nexport A=1\n```") == ["make demo\nls"]
    assert len(blocks(README)) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_every_block_of_the_readme_ends_well(tmp_path: Path) -> None:
    folder = copy_of_the_project(tmp_path / "stepthrift")
    for block in blocks(README):
        done = subprocess.run(["bash", "-ec", block], cwd=folder, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert (folder / "runs" / "demo" / "contact_sheet.png").is_file()
    assert len(list((folder / "runs" / "spring" / "images").rglob("*.png"))) == 48


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_job_files_are_valid_and_verbs_exist(page: Path) -> None:
    from jobs.__main__ import VERBS
    from jobs.job_file.read import read_job

    text = page.read_text("utf-8")
    assert set(re.findall(r"python -m jobs ([a-z]+)", text)) <= VERBS.keys()
    for job in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        assert read_job(job, page.name).config


def test_without_the_environment_it_says_how_to_activate_it() -> None:
    done = subprocess.run([sys.executable, "-S", "-m", "jobs"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert ". .venv/bin/activate" in done.stderr
    assert "Traceback" not in done.stderr


def test_from_another_folder_it_says_where_to_go(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, ROOT / ".ci" / "elsewhere.py"], check=True)
    (tmp_path / "empty").mkdir()
    done = subprocess.run([python, "-m", "jobs", "demo"], cwd=tmp_path / "empty", capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip().endswith(f"cd {ROOT}")) == (2, True)
    here = subprocess.run([python, "-m", "jobs", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert "activate" in here.stderr  # the project's own jobs come first: it lacks the packages alone
