"""Evaluation and whole runs: nothing goes stale, and zero-shot stands beside every score."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import api, engine, methods
from mmrl.clip import Clip
from mmrl.data import Dataset, Draw, Item, draw_shots, test_batches
from mmrl.engine.features import preprocess_of
from mmrl.errors import MmrlError, UsageError
from mmrl.reports import read_record
from tests.unit.colours import NAMES, OPTIONS, PROMPT, base_draw, clip_on_one_thread, colours, fresh, noise, train_on

clip = pytest.fixture(scope="module")(clip_on_one_thread)


def run(clip: Clip, dataset: Dataset, draw: Draw, values: dict[str, Any], **more: Any) -> engine.RunResult:
    overrides = {**OPTIONS, **values}
    return api.train(dataset, backbone=clip, draw=draw, classes=draw.classes, overrides=overrides, progress=False, **more)


def test_evaluate_train_evaluate(clip: Clip) -> None:
    method, dataset = fresh(clip), colours().restrict("base")
    classes = method.class_list(dataset.classes, dataset.template)
    items = base_draw().train
    before = engine.evaluate_dataset(method, dataset, items, seen=True)
    before_head = method.head(classes)
    train_on(method, dataset, items, {"epochs": 12, "lr": 2e-2, "batch_size": 2})
    after = engine.evaluate_dataset(method, dataset, items, seen=True)
    assert after.zero_shot is not None and before.zero_shot == after.zero_shot
    assert after.adapted != before.adapted and after.adapted.top1 > before.adapted.top1
    assert not torch.allclose(before_head, method.head(classes))


def test_evaluate_agrees_with_the_method(clip: Clip) -> None:
    method, dataset = fresh(clip), colours()
    classes = method.class_list(NAMES, PROMPT)
    seen = engine.trained_mask(NAMES, ["red", "grey"])
    assert seen.tolist() == [True, False, False, True]
    batches = list(test_batches(dataset, dataset.test, preprocess_of(clip), 5))
    with torch.no_grad():
        logits = torch.cat([method.logits(images, method.head(classes), seen) for images, _ in batches])
        frozen = torch.cat([clip.logit_scale * clip.encode_image(images) @ classes.zero_shot.T for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    found = engine.evaluate_dataset(method, dataset, seen=seen, batch_size=5)
    assert found.adapted == engine.score(logits.numpy(), labels.numpy(), NAMES) == engine.evaluate(method, classes, batches, seen)
    zero_shot = engine.evaluate(methods.build("zero-shot", clip), classes, batches, False)
    assert found.zero_shot == engine.score(frozen.numpy(), labels.numpy(), NAMES) == zero_shot != found.adapted


def test_zero_shot_beside_is_asked_for(clip: Clip) -> None:
    found = engine.evaluate_dataset(fresh(clip), colours(), seen=True, beside_zero_shot=False)
    assert found.zero_shot is None and found.adapted == engine.evaluate_dataset(fresh(clip), colours(), seen=True).adapted
    itself = engine.evaluate_dataset(methods.build("zero-shot", clip), colours(), seen=False)
    assert itself.zero_shot == itself.adapted
    with pytest.raises(UsageError, match=r"seen has shape \(3,\); 'colours' has 4 classes"):
        engine.evaluate_dataset(fresh(clip), colours(), seen=[True, False, True])


def test_the_prompt_is_the_data_sets(clip: Clip) -> None:
    other = dataclasses.replace(colours(), template="the colour {}.")
    method = fresh(clip)
    classes = method.class_list(NAMES, other.template)
    batches = list(test_batches(other, other.test, preprocess_of(clip), 64))
    found = engine.evaluate_dataset(method, other, seen=True)
    assert found.adapted == engine.evaluate(method, classes, batches, True)
    assert found.adapted.ece != engine.evaluate_dataset(method, colours(), seen=True).adapted.ece


def test_what_is_trained_in_bf16_is_tested_in_float32(clip: Clip) -> None:
    """The record's scores are those of the trained tensors in float32, and not those that bf16 gives."""
    result = run(clip, colours(), base_draw(), {"epochs": 2, "batch_size": 2, "lr": 1e-2, "precision": "bf16"})
    assert result.fitted is not None and result.fitted.config.precision == "bf16"
    assert {option.key: option.value for option in result.record.trained.options}["precision"] == "bf16"
    for which, seen in (("base", True), ("novel", False)):
        part = colours().restrict(which)
        found = engine.evaluate_dataset(result.method, part, seen=seen)
        assert getattr(result.record.metrics, which) == found.adapted and getattr(result.record.zero_shot, which) == found.zero_shot
        rounded: list[Tensor] = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            head = result.method.head(result.method.class_list(part.classes, part.template))
            for images, _ in test_batches(part, part.test, preprocess_of(clip), 64):
                rounded.append(result.method.logits(images, head, seen).float())
        labels = [item.label for item in part.test]
        assert engine.score(torch.cat(rounded).numpy(), labels, part.classes).ece != found.adapted.ece


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluate_takes_no_notice_of_a_precision(clip: Clip, precision: str) -> None:
    """`evaluate` gives float32's scores of what was trained in any."""
    method, dataset = fresh(clip), colours().restrict("base")
    train_on(method, dataset, base_draw().train, {"epochs": 2, "batch_size": 2, "precision": precision})
    classes = method.class_list(dataset.classes, dataset.template)
    batches = list(test_batches(dataset, dataset.test, preprocess_of(clip), 64))
    with torch.no_grad():
        logits = torch.cat([method.logits(images, method.head(classes), True) for images, _ in batches])
    assert logits.dtype == torch.float32
    labels = [item.label for item in dataset.test]
    assert engine.evaluate(method, classes, batches, True) == engine.score(logits.numpy(), labels, dataset.classes)


def test_logits_that_are_not_finite_are_refused(clip: Clip) -> None:
    method = fresh(clip)
    batches = noise(1)
    batches[0][0][1] = float("nan")
    with pytest.raises(MmrlError, match="for image 1 is not finite"):
        engine.evaluate(method, method.class_list(NAMES, PROMPT), batches, True)


def test_nothing_to_test_on_is_said_before_training(clip: Clip, tmp_path: Path) -> None:
    dataset = dataclasses.replace(colours(), test=[item for item in colours().test if item.label < 2])
    with pytest.raises(UsageError, match="no test images of its novel classes"):
        run(clip, dataset, base_draw(), {}, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_run_of_all_classes_has_one_score(clip: Clip) -> None:
    draw = draw_shots(colours(), 4, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", engine.BelowZeroShotWarning)
        record = run(clip, colours(), draw, {"epochs": 2, "batch_size": 8}, protocol="few-shot").record
    assert record.metrics.all and record.metrics.all.class_names == NAMES and record.metrics.all.count == 32
    assert record.metrics.base is record.metrics.novel is record.metrics.hm is None
    assert record.trained.protocol == "few-shot"


def test_a_run_writes_its_record(clip: Clip, tmp_path: Path) -> None:
    right = colours()
    dataset = dataclasses.replace(right, train=[Item(item.key, item.label ^ 1) for item in right.train])  # red is taught as green
    draw = draw_shots(dataset, 4, seed=1, classes="base")
    with pytest.warns(engine.BelowZeroShotWarning, match="ended below zero-shot CLIP on the base classes: .*% against .*%") as warned:
        result = run(clip, dataset, draw, {"epochs": 12, "lr": 2e-2, "batch_size": 2}, out=tmp_path)
    record, content = read_record(tmp_path), json.loads((tmp_path / "run.json").read_text())
    assert record.model_dump() == result.record.model_dump()
    said = [text for test in content["tests"] for text in test["warnings"]]
    assert said == list(record.warnings) == [str(one.message) for one in warned if one.category is engine.BelowZeroShotWarning]
    assert result.fitted is not None
    training = record.trained
    assert content["training"]["trained_parameters"] == sum(p.numel() for p in result.method.parameters())
    assert (training.dataset, training.classes, training.shots, training.draw_hash) == ("colours", "base", 4, draw.hash)
    assert (record.method, record.title, record.backbone_hash, training.images) == ("mmrl", "MMRL", clip.identity, 8)
    assert record.metrics.base and record.metrics.novel and record.zero_shot and record.zero_shot.hm is not None
    assert record.metrics.base.class_names == NAMES[:2] and record.metrics.novel.class_names == NAMES[2:]
    assert [(test.classes, test.seen, test.template) for test in record.tests] == [("base", True, PROMPT), ("novel", False, PROMPT)]
    sources = {option.key: option.source for option in training.options}
    assert sources["lr"] == sources["rep_dim"] == "call" and sources["momentum"] == "built-in default"
    assert "paper" in sources["alpha"] or "authors" in sources["alpha"]
    assert {"python", "mmrl", "torch", "open_clip_torch"} <= set(training.environment.versions)
    assert training.environment.hardware["cores"] >= 1
    assert len(training.history) == len(result.fitted.history) == 48
    assert "Below zero-shot" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "draw.json").read_text())["hash"] == training.draw_hash
