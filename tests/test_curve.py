"""What steps buy: by group, where it saturates, and what knowing the prompt could gain, on worlds that are known."""

import numpy as np
from tables import CHOICES, STEPS, world

from training.judge.curve import Curve, curve, curve_text, curve_verdict


def found(alike: bool = False, noise: float = 0.03) -> Curve:
    table = world(400, noise=noise, alike=alike)
    return curve(table, {"category": [str(kind) for kind in table.categories]}, margin=0.02, resamples=400)


def test_groups_saturate_where_they_do() -> None:
    by_name = {group.name: group for group in found().groups}
    words = [recipe.words for recipe in CHOICES]
    assert set(by_name) == {"all", "category plain", "category rich"}
    assert words.index(by_name["category plain"].saturated) < words.index(by_name["category rich"].saturated)
    assert by_name["all"].prompts == by_name["category plain"].prompts + by_name["category rich"].prompts == 400
    assert all(low < value < high for group in by_name.values() for value, low, high in group.quality)


def test_what_the_prompt_explains_is_told_from_what_the_seed_does() -> None:
    known, unknown = found(), found(alike=True, noise=0.2)
    assert known.agreement[0] > 0.8
    assert known.agreement[1] > 0.3
    assert max(np.abs(unknown.agreement[:-1])) < 0.3
    assert max(gain.low for _, gain in known.oracle) > 0
    assert max(gain.low for _, gain in known.oracle_by_group) > 0
    assert all(gain.low <= 0 for _, gain in unknown.oracle)


def test_a_group_of_few_is_left_out_and_a_flat_world_has_no_prices() -> None:
    table = world(40)
    names = ["rare"] * 3 + ["common"] * 37
    assert [group.name for group in curve(table, {"kind": names}, 0.02, 50).groups] == ["all", "kind common"]
    falling = world(40, noise=0.0, alike=True)
    falling.quality[:] = falling.quality[:, ::-1]
    assert curve(falling, {}, 0.02, 50).oracle == ()


def test_it_reads_as_a_table() -> None:
    lines = curve_text(found(), "truth").splitlines()
    assert "judged by truth" in lines[0]
    assert all(f" {steps}" in lines[1] for steps in STEPS)
    assert lines[2].startswith("all ")
    assert lines[2].rstrip().endswith("steps")


def test_the_verdict_says_whether_prompts_differ() -> None:
    whole = curve(world(300, noise=0.01), {}, 0.02, 50)
    words = curve_verdict(whole, "truth").splitlines()
    assert words[0] == "Judged by truth, 300 prompts:"
    assert "a policy can learn it" in words[2]
    assert len(words) <= 10
    alike = curve_verdict(curve(world(300, noise=0.2, alike=True), {}, 0.02, 50), "truth")
    assert "the seed's to say" in alike
    few = curve_verdict(curve(world(40), {}, 0.02, 50), "truth")
    assert "So few prompts" in few
    assert "correlation" not in few


def test_labels_are_in_their_natural_order() -> None:
    table = world(60)
    words = [("9 to 13", "14 to 18", "3 to 8")[row % 3] for row in range(60)]
    names = [group.name for group in curve(table, {"words": words}, 0.02, 50).groups]
    assert names == ["all", "words 3 to 8", "words 9 to 13", "words 14 to 18"]
