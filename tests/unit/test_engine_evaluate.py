"""Evaluation and whole runs: nothing goes stale, and zero-shot stands beside every score."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch

from mmrl import engine
from mmrl.clip import Clip
from mmrl.data import Item, draw_shots
from mmrl.errors import UsageError
from mmrl.reports import read_record
from tests.unit.colours import NAMES, base_draw, clip_on_one_thread, colours, fresh, noise

clip = pytest.fixture(scope="module")(clip_on_one_thread)


def test_evaluate_train_evaluate(clip: Clip) -> None:
    method, dataset = fresh(clip), colours().restrict("base")
    classes = method.class_list(dataset.classes, dataset.template)
    items = base_draw().train
    before = engine.evaluate_dataset(method, dataset, items, seen=True)
    before_logits = method.text_features(classes)
    engine.fit(method, dataset, items, {"epochs": 12, "lr": 2e-2, "batch_size": 2}, progress=False)
    after = engine.evaluate_dataset(method, dataset, items, seen=True)
    assert after.zero_shot == before.zero_shot
    assert after.adapted != before.adapted and after.adapted.top1 > before.adapted.top1
    assert not torch.allclose(before_logits, method.text_features(classes))


def test_evaluate_agrees_with_the_method(clip: Clip) -> None:
    method, batches = fresh(clip), noise(3, size=5)
    classes = method.class_list(NAMES, "a photo of {}.")
    seen = engine.trained_mask(NAMES, ["red", "grey"])
    assert seen.tolist() == [True, False, False, True]
    with torch.no_grad():
        logits = torch.cat([method.logits(images, method.text_features(classes), seen) for images, _ in batches])
        frozen = torch.cat([clip.logit_scale * clip.encode_image(images) @ classes.zero_shot.T for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    found = engine.evaluate_both(method, classes, iter(batches), seen)
    assert found.adapted == engine.score(logits.numpy(), labels.numpy(), NAMES) == engine.evaluate(method, classes, batches, seen)
    assert found.zero_shot == engine.score(frozen.numpy(), labels.numpy(), NAMES) == engine.evaluate_zero_shot(clip, classes, batches)


def test_nothing_to_test_on_is_said_before_training(clip: Clip, tmp_path: Path) -> None:
    dataset = dataclasses.replace(colours(), test=[item for item in colours().test if item.label < 2])
    with pytest.raises(UsageError, match="no test images of its novel classes"):
        engine.run(fresh(clip), dataset, base_draw(), out=tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()


def test_a_run_of_all_classes_has_one_score(clip: Clip) -> None:
    draw = draw_shots(colours(), 4, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", engine.BelowZeroShotWarning)
        record = engine.run(fresh(clip), colours(), draw, {"epochs": 2, "batch_size": 8}, progress=False, protocol="few-shot").record
    assert record.metrics.all and record.metrics.all.class_names == NAMES and record.metrics.all.count == 32
    assert record.metrics.base is record.metrics.novel is record.metrics.hm is None


def test_a_run_writes_its_record(clip: Clip, tmp_path: Path) -> None:
    right = colours()
    dataset = dataclasses.replace(right, train=[Item(item.key, item.label ^ 1) for item in right.train])  # red is taught as green
    draw = draw_shots(dataset, 4, seed=1, classes="base")
    with pytest.warns(engine.BelowZeroShotWarning, match="ended below zero-shot CLIP on the base classes: .*% against .*%") as warned:
        result = engine.run(fresh(clip), dataset, draw, {"epochs": 12, "lr": 2e-2, "batch_size": 2}, out=tmp_path, progress=False)
    record, content = read_record(tmp_path), json.loads((tmp_path / "run.json").read_text())
    assert record.model_dump() == result.record.model_dump()
    assert content["warnings"] == list(result.warnings) == [str(one.message) for one in warned]
    assert content["trained_parameters"] == sum(p.numel() for p in result.fitted.method.parameters())
    assert (record.dataset, record.classes, record.shots, record.draw_hash) == ("colours", "base", 4, draw.hash)
    assert record.metrics.base and record.metrics.novel and record.zero_shot and record.zero_shot.hm is not None
    assert record.metrics.base.class_names == NAMES[:2] and record.metrics.novel.class_names == NAMES[2:]
    sources = {option.key: option.source for option in record.options}
    assert sources["lr"] == sources["rep_dim"] == "given" and sources["weight_decay"] == sources["alpha"] == "built-in default"
    assert {"python", "mmrl", "torch", "open_clip_torch"} <= set(record.versions) and record.hardware["cores"] >= 1
    assert len(record.history) == len(result.fitted.history) == 48
    assert "Below zero-shot" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "draw.json").read_text())["hash"] == record.draw_hash
