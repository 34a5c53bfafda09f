"""A user's function on each picture: it changes stored pixels, always alike, and nothing that others see."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.rows import SamplerConfig
from actors.scorer import QualityScorer, ScorerConfig, ScorerSpec
from jobs.job_file.positions import ConfigError
from jobs.job_file.provenance import check_provenance
from jobs.job_file.read import read_job
from pipelines.integrity.verification import verify
from pipelines.render.keys import plan_key, tries_rules
from pipelines.render.marks import Marks
from pipelines.render.provenance import Provenance, ProvenanceConfig, load_provenance
from pipelines.render.quality import ShardScores
from pipelines.render.signing import SigningConfig
from pipelines.render.stamp import Stamp, StampConfig, StampError, StampFailed, StampFunction
from pipelines.run.layout import RunFolder
from tests.finished import RENDER_CLASS, picture
from tests.marked import MARKED, MARKS, made_from, manifest, marked_run, rendered, stored
from tests.plans import typed_row

KEPT: list[np.ndarray] = []


def logo(image: np.ndarray) -> np.ndarray:
    image[:4, :4] = 255
    return image


def another(image: np.ndarray) -> np.ndarray:
    return 255 - image


def restless(image: np.ndarray) -> np.ndarray:
    image[0, 0] = np.random.default_rng().integers(0, 256, 3)
    return image


def raises_on_some(image: np.ndarray) -> np.ndarray:
    if image[0, 0, 0] < 128:
        raise ValueError("too dark")
    return image


def keeps(image: np.ndarray) -> np.ndarray:
    for each in KEPT:
        each[:] = 0
    KEPT.extend([image, out := another(image)])
    return out


def stamping(function: StampFunction) -> Provenance:
    return Provenance(MARKS, Stamp(StampConfig(f"tests.test_stamp:{function.__name__}", function)))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("layout", ["files", "webdataset", "parquet"])
def test_pixels_are_changed_before_the_hash_and_the_run_is_clean(tmp_path: Path, layout: str) -> None:
    run = marked_run(tmp_path / "run", stamping(logo), layout)
    plain = {row["id"]: row for row in manifest(marked_run(tmp_path / "plain", MARKED, layout))}
    data = stored(run)
    for row in manifest(run):
        np.testing.assert_array_equal(pixels(data[row["id"]]), logo(picture(typed_row(int(row["id"][1:]))).image))
        assert row["sha256"] != plain[row["id"]]["sha256"]
        assert row["render_key"] != plain[row["id"]]["render_key"]
        assert made_from(data[row["id"]])["seed"] == row["seed"]
    assert {finding.kind for checked in verify(run, 1) for finding in checked.findings} == set()


def test_keys_differ_by_the_functions_name_and_stay_without_one(tmp_path: Path) -> None:
    keys = [
        rendered(RunFolder(str(tmp_path / str(n))), [typed_row(1)], each)[0]["render_key"]
        for n, each in enumerate((Provenance(), MARKED, stamping(logo), stamping(another)))
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_the_plans_key_follows_all_that_is_done() -> None:
    stamp = StampConfig("m:f", logo)
    configs = [
        ProvenanceConfig(),
        ProvenanceConfig(Marks(iptc=True)),
        ProvenanceConfig(Marks(parameters=True)),
        ProvenanceConfig(signing=SigningConfig()),
        ProvenanceConfig(stamp=stamp),
        ProvenanceConfig(stamp=StampConfig("m:g", logo)),
    ]
    rules = [tries_rules("png", 1, (), None, config.key_parts) for config in configs]
    keys = [plan_key(typed_row(1), RENDER_CLASS, SamplerConfig(""), each) for each in rules]
    assert len(set(keys)) == len(configs)
    assert rules[0] == tries_rules("png", 1, ())
    renewed = ProvenanceConfig(signing=SigningConfig("renewed.pem"))
    assert renewed.key_parts == configs[3].key_parts


def test_what_a_function_keeps_changes_no_stored_byte(tmp_path: Path) -> None:
    KEPT.clear()
    rows = [typed_row(i) for i in range(8)]
    run = RunFolder(str(tmp_path))
    with ThreadPoolExecutor(4) as writers:
        found = rendered(run, rows, stamping(keeps), "webdataset", writers=writers)
    alone = [rendered(RunFolder(str(tmp_path / row.id)), [row], stamping(another))[0] for row in rows]
    assert len(found) == 8
    tar = run.read(found[0]["uri"].partition("#")[0])
    for row, made in zip(rows, found, strict=True):
        data = tar[made["offset"] : made["offset"] + made["bytes"]]
        np.testing.assert_array_equal(pixels(data), another(picture(row).image))
    assert [row["bytes"] for row in found] == [row["bytes"] for row in alone]


def test_a_row_that_cannot_be_stamped_fails_alone(tmp_path: Path) -> None:
    rows = [typed_row(i) for i in range(20)]
    dark = {row.id for row in rows if picture(row).image[0, 0, 0] < 128}
    assert 0 < len(dark) < 20
    found = rendered(RunFolder(str(tmp_path)), rows, stamping(raises_on_some))
    failed = {row["id"]: (row["error_type"], row["error_message"]) for row in found if row["status"] == "failed"}
    said = "tests.test_stamp:raises_on_some raised ValueError: too dark"
    assert failed == dict.fromkeys(dark, ("StampFailed", said))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda image: None, "gave a NoneType, not an array of uint8 16x16x3"),
        (lambda image: image[:8], "gave an array of uint8 8x16x3"),
        (lambda image: image / 255, "gave an array of float64 16x16x3"),
        (lambda image: Image.fromarray(image), "gave a Image"),
    ],
)
def test_what_is_no_picture_of_that_size_is_told(made: StampFunction, said: str) -> None:
    with pytest.raises(StampFailed, match=said):
        Stamp(StampConfig("m:f", made))(picture(typed_row(1)).image)


def test_a_function_that_gives_other_pixels_each_time_ends_the_attempt(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    with pytest.raises(StampError, match="restless gave other pixels for the same picture"):
        rendered(run, [typed_row(i) for i in range(4)], stamping(restless))
    assert list(run.walk("images")) == []


def test_only_the_first_picture_is_stamped_twice() -> None:
    calls: list[int] = []
    stamp = Stamp(StampConfig("m:f", lambda image: calls.append(1) or image))
    for seed in range(5):
        stamp(picture(typed_row(seed)).image)
    assert len(calls) == 6


def test_scorers_see_the_picture_as_it_was_rendered(tmp_path: Path) -> None:
    rows, seen = [typed_row(i) for i in range(3)], list[float]()

    def mean(images: list[np.ndarray], prompts: list[str]) -> list[float]:
        seen.extend(float(image.mean()) for image in images)
        return seen[-len(images) :]

    scorer = QualityScorer(ScorerConfig((ScorerSpec("mean", "function", function=mean),)))
    scores = ShardScores(scorer, rows, threading.Lock())
    rendered(RunFolder(str(tmp_path)), rows, stamping(another), scores=scores)
    assert seen == [float(picture(row).image.mean()) for row in rows]


def test_nothing_is_stamped_where_nothing_is_stored(tmp_path: Path) -> None:
    calls: list[int] = []
    provenance = Provenance(MARKS, Stamp(StampConfig("m:f", lambda image: calls.append(1) or image)))
    found = rendered(RunFolder(str(tmp_path)), [typed_row(1)], provenance, "none")
    assert (calls, found[0]["status"], found[0]["sha256"]) == ([], "ok", None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests.test_stamp:restless", "gave other pixels for the same picture"),
        ("tests.test_stamp:nothing", "there is no tests.test_stamp:nothing"),
        ("no.such.module:f", "there is no no.such.module:f"),
        ("tests.test_stamp:KEPT", "is no function but list"),
    ],
)
def test_a_wrong_stamp_is_refused_before_the_start(name: str, said: str) -> None:
    job = read_job(f"input: {{path: p.csv}}\nprovenance: {{stamp: '{name}'}}", "job.yaml")
    with pytest.raises(ConfigError) as error:
        check_provenance(job)
    (fault,) = error.value.faults
    assert fault.where == "job.yaml:2:21"
    assert said in fault.message


def test_a_worker_makes_its_own_from_the_settings() -> None:
    made = load_provenance(ProvenanceConfig(MARKS, None, StampConfig("m:f", logo)))
    assert (made.marks, made.stamp_name, made.signer) == (MARKS, "m:f", None)
