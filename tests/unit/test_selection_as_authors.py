"""selection=authors: what a method may then see, that its epoch is the best on test images, and that its numbers are marked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmrl import engine, methods
from mmrl.clip import Clip
from mmrl.data import draw_shots
from mmrl.engine.fit import _Features
from mmrl.engine.overrides import as_authors
from mmrl.engine.score import evaluate_dataset
from mmrl.errors import UsageError
from mmrl.methods.tip_adapter import TipAdapterF
from tests.unit.colours import colours, items, train_on
from tests.unit.conftest import Cli

SELECTING = ("ape", "ape-t", "gda", "linear-probe", "tip-adapter", "tip-adapter-f")
SHORT = {"epochs": 1, "warmup_epochs": 0, "batch_size": 2}


def test_which_methods_can() -> None:
    assert set(as_authors(methods.names())) == set(SELECTING)


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("selection", ["authors", "validation"])
@pytest.mark.parametrize("with_val", [False, True])
def test_what_a_method_is_shown(small_clip: Clip, monkeypatch: pytest.MonkeyPatch, name: str, selection: str, with_val: bool) -> None:
    """The whole validation part, or where there is none the test images, as for ImageNet; and no test image otherwise."""
    dataset = dataclasses.replace(colours(), val=items(8, 12) if with_val else [])
    draw = dataclasses.replace(draw_shots(dataset, 2, 1), val=items(8, 9))
    shown: set[str] = set()
    plain = _Features.__call__

    def watched(self: _Features, part: str, views: int = 0) -> tuple[Tensor, Tensor]:
        shown.update(item.key for item in self.items[part])
        return plain(self, part, views)

    monkeypatch.setattr(_Features, "__call__", watched)
    train_on(methods.build(name, small_clip, {"selection": selection}, seed=1), dataset, draw, SHORT)
    test = {item.key for item in dataset.test}
    if selection == "validation":
        assert shown == {item.key for item in (*draw.train, *draw.val)}
    elif with_val:
        assert shown - test == {item.key for item in (*draw.train, *dataset.val)}
        assert bool(shown & test) == (name == "tip-adapter-f")
    else:
        assert shown == {item.key for item in draw.train} | test


def test_the_epoch_that_is_best_on_test_images(small_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of the best, with its keys."""
    after: list[tuple[float, Tensor]] = []
    plain = TipAdapterF.epoch_ended

    def watched(self: TipAdapterF, epoch: int, epochs: int) -> None:
        after.append((evaluate_dataset(self, colours(), seen=True).adapted.top1, self.keys.detach().clone()))
        plain(self, epoch, epochs)

    monkeypatch.setattr(TipAdapterF, "epoch_ended", watched)
    options = {"selection": "authors", "alpha": 5.0, "search_step": (1, 1)}
    method = methods.build("tip-adapter-f", small_clip, options, seed=1)
    train_on(method, colours(), items(0, 2), {"epochs": 6, "warmup_epochs": 0, "batch_size": 2, "lr": 0.3})
    accuracies = [accuracy for accuracy, _ in after]
    assert len(after) == 6 and max(accuracies) > accuracies[-1]  # or this would show nothing
    assert torch.equal(method.keys, after[accuracies.index(max(accuracies))][1])


def test_an_interrupted_training_keeps_the_best_epoch(small_clip: Clip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {"epochs": 6, "warmup_epochs": 0, "batch_size": 2, "lr": 0.3}

    def trained(out: Path | None, resume: bool = False) -> Tensor:
        method = methods.build("tip-adapter-f", small_clip, {"selection": "authors", "alpha": 5.0, "search_step": (1, 1)}, seed=1)
        config, place = engine.make_config(values), engine.Place(out, progress=False, resume=resume)
        engine.fit(method, engine.TrainingData.of(small_clip, colours(), items(0, 2), config, place), config, place)
        return method.keys

    plain = TipAdapterF.epoch_ended

    def interrupted(self: TipAdapterF, epoch: int, epochs: int) -> None:
        if epoch == 5:
            raise KeyboardInterrupt
        plain(self, epoch, epochs)

    whole = trained(None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TipAdapterF, "epoch_ended", interrupted)
        trained(tmp_path)
    assert torch.equal(trained(tmp_path, resume=True), whole)


@pytest.mark.parametrize("name", SELECTING)
def test_without_test_images_of_its_own(small_clip: Clip, name: str) -> None:
    own = dataclasses.replace(colours(), test=[], rest_tests=True)
    with pytest.raises(UsageError, match="selection is 'authors', which looks at test images, and 'colours' has none of its own; choose"):
        train_on(methods.build(name, small_clip, {"selection": "authors"}, seed=1), own, items(0, 2), SHORT)


def test_the_bench_marks_them_and_refuses_where_it_changes_nothing(cli: Cli, tmp_path: Path) -> None:
    few = ("bench", "few-shot", "--mini", "--datasets", "mini:digits", "--shots", 1, "--seeds", 1)
    words = (*few, "--paper-compat", "--out", tmp_path / "r")
    code, out, err = cli(*words, "--methods", "linear-probe", "--set", "c_search_steps=0")
    assert code == 0, err
    assert "selection=authors: selected as the authors did, on test images" in " ".join(out.split())
    (record,) = (tmp_path / "r" / "runs").glob("*.json")
    assert any("test scores are flattered" in said for said in json.loads(record.read_text())["training"]["warnings"])
    code, _, err = cli(*words, "--methods", "mmrl,coop")
    assert code == 2 and "--paper-compat changes nothing of these methods in few-shot; it is for those that select: " in err
