"""Options that concern some methods: refused where one runs, given to those that have them where many run, and no variant of the others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from mmrl import api, methods
from mmrl.engine import FitConfig
from mmrl.engine.context import settings
from mmrl.engine.overrides import own_options
from mmrl.errors import Notice, UsageError
from tests.unit.grids import COMMON, contents
from tests.unit.test_cli_bench import Bench, mmrl  # noqa: F401  (a fixture)

GIVEN = {"epochs": 3, "seed": 2, "rep_dim": 8}
WITHOUT_STEPS = [name for name in methods.names() if methods.get(name).trained_by() != "steps"]


def shared(given: dict[str, Any], *names: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The options by method, and what was noted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = own_options(given, names)
    assert all(issubclass(each.category, Notice) for each in caught)
    return found, [str(each.message) for each in caught]


@pytest.mark.parametrize("name", WITHOUT_STEPS)
@pytest.mark.parametrize("option", FitConfig.model_fields)
def test_one_method_refuses_what_has_no_effect(name: str, option: str) -> None:
    cls, given = methods.get(name), {option: FitConfig.model_fields[option].default}
    if option in cls.setup_options:
        assert settings(name, overrides=given).fit[option] == given[option]
        return
    with pytest.raises(UsageError, match=f"^{option} has no effect on {name}, which trains nothing by steps. Its options: .*seed"):
        settings(name, overrides=given)


@pytest.mark.parametrize("name", sorted({*methods.names()} - {*WITHOUT_STEPS}))
def test_a_method_that_trains_by_steps_takes_all(name: str) -> None:
    resolved = settings(name, overrides={"batch_size": 7, "log": None, "memory_gib": 2.0})
    assert resolved.fit["batch_size"] == 7 and resolved.fit["memory_gib"] == 2.0


def test_crops_count_where_there_are_views(photos: Path) -> None:
    def weights(method: str, **options: Any) -> list[float]:
        run = api.train(photos, method=method, shots=2, backbone="tiny", device="cpu", progress=False, **options)
        return [number for value in run.method.state_dict().values() for number in value.flatten().tolist()]

    assert weights("gda", crop_scale=(0.1, 0.2)) != weights("gda")
    with pytest.raises(UsageError, match="crop_scale has no effect on linear-probe.* of training: seed"):
        weights("linear-probe", crop_scale=(0.1, 0.2))


def test_each_gets_what_it_has() -> None:
    found, said = shared(GIVEN, "zero-shot", "gda", "coop", "mmrl", "mmrlpp")
    assert found == {"zero-shot": {}, "gda": {"seed": 2}, "coop": {"epochs": 3, "seed": 2}, "mmrl": GIVEN, "mmrlpp": GIVEN}
    assert said == [
        "epochs: set for coop, mmrl, mmrlpp; without effect on gda, and left out there.",
        "rep_dim: set for mmrl, mmrlpp; without effect on gda, coop, and left out there.",
    ]
    assert shared(GIVEN, "mmrl", "mmrlpp") == ({"mmrl": GIVEN, "mmrlpp": GIVEN}, [])


def test_one_method_by_name_wins_and_what_none_has_stays() -> None:
    found, said = shared({"epochs": 3, "coop.epochs": 5, "nonsense": 1, "gda.lr": 1}, "gda", "coop", "mmrl")
    assert found == {"gda": {"nonsense": 1, "lr": 1}, "coop": {"epochs": 5, "nonsense": 1}, "mmrl": {"epochs": 3, "nonsense": 1}}
    assert said == ["epochs: set for coop, mmrl; without effect on gda, and left out there."]
    with pytest.raises(UsageError, match="kgcoop.lr is set, but kgcoop is not among the methods that run: gda, coop"):
        own_options({"kgcoop.lr": 1}, ["gda", "coop"])
    assert shared({"epochs": 1}, "zero-shot") == ({"zero-shot": {}}, ["epochs: without effect, since nothing is trained."])


def test_a_grid_makes_no_variant_of_a_method_without_the_option(mmrl: Bench, root: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    words = ("bench", "base-to-novel", "--datasets", root, "--seeds", "1,2", "--shots", "2", "--out", out, *COMMON)
    code, _, err = mmrl(*words, "--methods", "gda,mmrl", "--set", "mmrl.lam=2", "--precision", "bf16", "--dry-run")
    assert code == 0 and err.count("epochs, warmup_epochs, rep_tokens") == 1, err
    code, _, err = mmrl("bench", "base-to-novel", "--datasets", root, "--seeds", "1", "--shots", "2", "--out", out, *COMMON[:4],
                        "--methods", "gda,mmrl", "--set", "gda.alpha=0.5", "--set", "epochs=1", "--set", "warmup_epochs=0")  # fmt: skip
    assert code == 0, err
    (plan,) = contents(out, "plans").values()
    assert {(slot["method"], slot["variant"]) for slot in plan["slots"]} == {("gda", "alpha=0.5"), ("mmrl", "epochs=1, warmup_epochs=0")}
    code, printed, _ = mmrl("bench", "base-to-novel", "--datasets", root, "--seeds", "1", "--shots", "2", "--out", out, *COMMON[:4],
                            "--methods", "gda", "--set", "alpha=0.5", "--precision", "bf16")  # fmt: skip
    assert code == 0 and "; 0 trainings" in printed  # no steps, so a precision of steps is no other result
    code, _, err = mmrl(*words[:-len(COMMON)], *COMMON[:4], "--methods", "gda,ape", "--set", "epochs=3")
    assert code == 2 and "epochs has no effect on gda" in err and "epochs has no effect on ape" in err
    code, _, err = mmrl("ablate", "--method", "gda", "--vary", "epochs=1,2", "--datasets", root, "--out", out, *COMMON[:4])
    assert code == 2 and "epochs has no effect on gda" in err


def test_the_race_gives_each_what_it_has(root: Path) -> None:
    with pytest.warns(Notice, match="batch_size, epochs, warmup_epochs: set for mmrl; without effect on gda"):
        found = api.advise(root, methods=("gda", "mmrl"), backbone="tiny", device="cpu", folds=2, epochs=1, warmup_epochs=0, batch_size=4)
    assert not any(each.why_not for each in found.entrants)
