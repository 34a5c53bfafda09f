"""The examples run as they stand, and what they make is there."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from examples import batch, one_request


def test_one_request(tmp_path: Path) -> None:
    paths = one_request.main(str(tmp_path / "pictures"))
    assert [Image.open(path).size for path in paths] == [(32, 32)] * len(one_request.REQUESTS)


@pytest.mark.ray
def test_batch(tmp_path: Path, ray_cluster: Any) -> None:
    run = batch.main(str(tmp_path / "run"))
    rows = [row for table in run.manifests() for row in table.to_pylist()]
    assert sorted(row["prompt"] for row in rows) == sorted(batch.PROMPTS)
    assert {row["status"] for row in rows} == {"ok"}
