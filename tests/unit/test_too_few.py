"""Too few images or classes for what a method does with them: it works, or it says what it needs."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from mmrl import engine, methods
from mmrl.clip import Clip
from mmrl.errors import Notice, UsageError
from tests.unit.colours import colours, items, train_on
from tests.unit.conftest import Cli

ON_FEATURES = ("ape", "ape-t", "clap", "gda", "linear-probe", "lpp", "tip-adapter", "tip-adapter-f")
SHORT = {"epochs": 1, "warmup_epochs": 0, "batch_size": 1}
SELECTED = {
    "ape": "beta, alpha and gamma", "ape-t": "alpha and beta", "gda": "alpha", "linear-probe": "C", "lpp": "a step",
    "tip-adapter": "alpha and beta", "tip-adapter-f": "alpha and beta",
}  # fmt: skip


@pytest.mark.parametrize("name", ON_FEATURES)
def test_one_image_a_class_is_enough(small_clip: Clip, name: str) -> None:
    """Also for GDA's 64 neighbours of a new class, of which there are 40 samples."""
    method = methods.build(name, small_clip, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        train_on(method, colours(), items(0, 1), SHORT)
    assert 0 <= engine.evaluate_dataset(method, colours(), seen=True).adapted.top1 <= 1
    if name == "gda":
        other = dataclasses.replace(colours(), classes=("a", "b", "c", "d"))
        assert 0 <= engine.evaluate_dataset(method, other, seen=False).adapted.top1 <= 1


@pytest.mark.parametrize("name", SELECTED)
def test_without_validation_images_it_says_what_selection_needs(small_clip: Clip, name: str) -> None:
    said = f"method '{name}' has no validation images to select {SELECTED[name]} on, and .* It needs some, .*val/.*selection=fixed"
    with pytest.warns(Notice, match=said):
        train_on(methods.build(name, small_clip, seed=1), colours(), items(0, 1), SHORT)
    fixed = methods.build(name, small_clip, {"selection": "fixed"}, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        train_on(fixed, colours(), items(0, 1), SHORT)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("gda", {"covariance": "mean", "augment_epoch": 0}, "covariance 'mean' needs two samples of every class.*Give it 2 or more"),
    ("gda", {"covariance": "shrunk", "augment_epoch": 0}, "samples that differ within their class.*Give it 2 or more views"),
]


@pytest.mark.parametrize(("name", "options", "said"), BAD)
def test_one_sample_a_class(cli: Cli, photos: Path, tmp_path: Path, name: str, options: dict[str, Any], said: str) -> None:
    words = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    out = tmp_path / "run"
    code, _, err = cli("train", "--data", photos, "--method", name, "--shots", 1, "--backbone", "tiny", "--out", out, *words)
    (line,) = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert code == 2 and re.search(said, line) and "Traceback" not in err


@pytest.mark.parametrize("name", ["ape", "ape-t", "clap", "gda", "linear-probe", "lpp"])
def test_one_class(cli: Cli, photos: Path, tmp_path: Path, name: str) -> None:
    root = tmp_path / "one"
    root.mkdir()
    (root / "red").symlink_to(photos / "red_thing")
    code, _, err = cli("train", "--data", root, "--method", name, "--shots", 2, "--backbone", "tiny", "--out", tmp_path / "run")
    (line,) = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert code == 2 and f"method '{name}' tells classes apart, and 'red' is the only one; give at least two" in line


@pytest.mark.parametrize("name", ON_FEATURES)
def test_a_class_without_an_image(small_clip: Clip, name: str) -> None:
    method = methods.build(name, small_clip, seed=1)
    some = [item for item in items(0, 2) if item.label]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        if name.startswith("tip"):  # its cache has nothing of that class, whose zero-shot logits are left
            train_on(method, colours(), some, SHORT)
            return
        with pytest.raises(UsageError, match=f"'{name}' needs a training image of every class, and 'red' has none"):
            train_on(method, colours(), some, SHORT)
