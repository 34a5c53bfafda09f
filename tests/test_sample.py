"""The pilot's sample: each category in its share, the same whatever the order of the rows."""

import random
from collections import Counter
from typing import Any

import pyarrow as pa

from pipelines.prompts.sample import stratified
from pipelines.run.schema import CANONICAL_FIELDS


def canonical(rows: list[dict[str, Any]]) -> pa.Table:
    whole = [{"sample": 0, "error_type": "", "guidance_scale": 2.0, "width": 32, "height": 32} | row for row in rows]
    return pa.Table.from_pylist(whole, schema=pa.schema(CANONICAL_FIELDS))


def rows(count: int, **values: Any) -> list[dict[str, Any]]:
    kinds = ["animals"] * 6 + ["food"] * 3 + [None]
    return [{"prompt_id": f"p{n}", "prompt": f"text {n}", "category": kinds[n % 10]} | values for n in range(count)]


def test_each_category_has_its_share() -> None:
    picked = stratified([canonical(rows(1000))], 100)
    assert Counter(picked["category"].to_pylist()) == {"animals": 60, "food": 30, None: 10}
    assert len(set(picked["id"].to_pylist())) == 100
    assert picked.column_names[:4] == ["id", "prompt", "negative_prompt", "category"]


def test_the_order_and_the_tables_do_not_matter() -> None:
    shuffled = rows(500)
    random.Random(0).shuffle(shuffled)
    parts = [canonical(shuffled[:123]), canonical(shuffled[123:])]
    assert stratified(parts, 77).equals(stratified([canonical(rows(500))], 77))


def test_small_inputs_are_taken_whole_and_odd_numbers_add_up() -> None:
    assert stratified([canonical(rows(7))], 20).num_rows == 7
    assert stratified([canonical(rows(1000))], 33).num_rows == 33


def test_bad_rows_and_second_pictures_are_left_out() -> None:
    mixed = [*rows(10), *rows(10, sample=1)]
    mixed[3]["error_type"] = "InvalidPrompt"
    assert sorted(stratified([canonical(mixed)], 50)["id"].to_pylist()) == sorted(f"p{n}" for n in range(10) if n != 3)


def test_categories_that_are_no_groups_are_one() -> None:
    single = [row | {"category": f"c{n}"} for n, row in enumerate(rows(300))]
    assert stratified([canonical(single)], 40).num_rows == 40
