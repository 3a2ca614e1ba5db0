"""Which class names are one, and how they are spoken."""

from __future__ import annotations

import pytest

from mmrl import names
from mmrl.clip import load_clip
from mmrl.errors import UsageError
from mmrl.templates import fill
from tests.oracle.pair import relative_error


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("red_panda", "red panda"), ("crane (2)", "crane"), ("crane_(13)", "crane_"), ("crane(2)", "crane"), ("crane (1)", "crane (1)"),
        ("crane (0)", "crane (0)"), ("(2)", "(2)"), ("crane (2) bird", "crane (2) bird"), ("crane (2x)", "crane (2x)"),
        ("a (2) (3)", "a (2)"),
    ],
)  # fmt: skip
def test_spoken(name: str, said: str) -> None:
    assert names.spoken(name).rstrip() == said.replace("_", " ").rstrip()


def test_one_name_up_to_case_spaces_and_underscores() -> None:
    assert len({names.name_key(name) for name in ("Red Panda", "red_panda", " red  panda ", "RED PANDA")}) == 1
    assert names.name_key("crane") != names.name_key("crane (2)")
    for pair in (("red panda", "Red Panda"), ("a_b", "a b"), ("x", "x"), ("Straße", "STRASSE")):
        with pytest.raises(UsageError, match=f"'{pair[1]}' stands twice in the class list, as numbers 2 and 3"):
            names.check_names(("other", *pair))


def test_distinct_names_number_what_stands_again() -> None:
    assert names.distinct_names(["crane", "missile", "Crane", "crane"]) == ["crane", "missile", "Crane (2)", "crane (3)"]
    assert names.distinct_names(["a", "a (2)", "a"]) == ["a", "a (2)", "a (3)"]
    assert names.distinct_names(["a", "a", "a (2)"]) == ["a", "a (3)", "a (2)"]
    again = names.distinct_names(["x"] * 30)
    assert names.check_names(again) == tuple(again) and {names.spoken(name) for name in again} == {"x"}


def test_the_number_is_not_spoken_in_the_prompt() -> None:
    assert fill("a photo of a {}.", ["crane", "crane (2)"]) == ["a photo of a crane."] * 2
    classes = load_clip("tiny", device="cpu").class_list(["crane", "dog", "crane (2)"], "a photo of a {}.")
    assert relative_error(classes.zero_shot[0], classes.zero_shot[2]) < 1e-5 < relative_error(classes.zero_shot[0], classes.zero_shot[1])
