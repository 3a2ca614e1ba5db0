"""How many classes train: what is free decides how many prompts are encoded at a time."""

from __future__ import annotations

import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmrl import engine, methods
from mmrl.clip import ClassList, Clip, random_clip
from mmrl.engine import memory
from tests.conftest import SMALL
from tests.unit.test_engine_fit import Same

GIB = 2**30
IMAGENET_21K = 21_841


def set_free(monkeypatch: pytest.MonkeyPatch, gib: float | None) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device="cpu": None if gib is None else int(gib * GIB))


def test_half_of_what_is_free_shared_by_all_who_train(monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 40)
    assert memory.text_memory() == 20 and memory.text_memory(processes=4) == 5
    set_free(monkeypatch, 0.5)
    assert memory.text_memory() == 1, "less would only be slow"
    set_free(monkeypatch, None)
    assert memory.text_memory() is None


@pytest.mark.parametrize(("files", "expected"), [
    ({"memory.max": "max", "memory.current": "5"}, None),
    ({"memory.max": "3000", "memory.current": "1000"}, 2000),
    ({"memory.max": "1000", "memory.current": "3000"}, 0),
    ({"memory/memory.limit_in_bytes": "700", "memory/memory.usage_in_bytes": "500"}, 200),
    ({}, None),
])  # fmt: skip
def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    monkeypatch.setattr(memory, "_field", lambda file, name: 10_000)
    assert memory.free_bytes() == (10_000 if expected is None else expected)


def test_the_machine_says_what_is_free() -> None:
    free = memory.free_bytes()
    assert free is None or free > 0


def small_batch(clip: Clip, classes: int) -> Any:
    images = torch.randn(2, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    return Same([(images, torch.tensor([0, classes - 1]))])


def train(clip: Clip, names: tuple[str, ...], **options: Any) -> tuple[engine.FitResult, ClassList]:
    """Two steps of MMRL; its classes as the training made them."""
    method, made = methods.build("mmrl", clip, {"rep_dim": 8}, seed=0), list[ClassList]()
    inner = method.class_list
    method.class_list = lambda *a, **k: made.append(inner(*a, **k)) or made[-1]  # type: ignore[method-assign,func-returns-value]
    data = engine.TrainingData(small_batch(clip, len(names)), names, "a photo of a {}.")
    return engine.fit(method, data, {"epochs": 2, "batch_size": 2, **options}, engine.Place(progress=False)), made[0]


def test_prompts_are_encoded_in_parts_only_where_memory_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, names = random_clip("ViT-B-32", **SMALL), tuple(f"thing {i}" for i in range(40))
    set_free(monkeypatch, 64)
    whole, classes = train(clip, names)
    assert (classes.fed.chunk or len(names)) >= len(names)
    unlimited, _ = train(clip, names, memory_gib=1e6)
    assert whole.history == unlimited.history
    monkeypatch.setattr(sys.modules["mmrl.engine.fit"], "text_memory", lambda device, processes: 1e-4)
    parts, classes = train(clip, names)
    assert classes.fed.chunk is not None and classes.fed.chunk < len(names)
    for one, other in zip(whole.history, parts.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_imagenet_21k_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many classes as ImageNet-21k has, in memory that holds the activations of a tenth of them."""
    clip = random_clip("ViT-B-32", **SMALL)
    names = tuple(f"sort {i // 150} kind {i % 150}" for i in range(IMAGENET_21K))
    probe = methods.build("mmrl", clip, {"rep_dim": 8}, seed=0).class_list(names[:2000], "a photo of a {}.", memory_gib=0.05)
    assert probe.fed.chunk is not None
    limit = 0.05 * (IMAGENET_21K / 10) / probe.fed.chunk
    monkeypatch.setattr(sys.modules["mmrl.engine.fit"], "text_memory", lambda device, processes: limit)
    fitted, classes = train(clip, names)
    assert classes.fed.chunk is not None and IMAGENET_21K / 20 < classes.fed.chunk < IMAGENET_21K / 5
    assert len(fitted.history) == 2 and all(row["loss"] > 0 for row in fitted.history)
    assert fitted.history[1]["loss"] != fitted.history[0]["loss"]


class Live(TorchDispatchMode):
    """Bytes of tensors that operations made and that still live, and the most there were: the same on every machine."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.most, self._known = 0, 0, weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and (storage := each.untyped_storage()) not in self._known:
                self._known.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return out

    def _count(self, size: int) -> None:
        self.bytes += size
        self.most = max(self.most, self.bytes)


def most_in_a_step(clip: Clip, names: int, chunk: int) -> int:
    """Bytes at the peak of a step of MMRL, of prompts of equal length."""
    method = methods.build("mmrl", clip, {"rep_dim": 8}, seed=0)
    classes = method.class_list([f"thing {i:04}" for i in range(names)], "a photo of a {}.")
    classes = replace(classes, prompts=replace(classes.fed, chunk=chunk))
    images = torch.randn(2, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    with Live() as live:
        method.loss(images, torch.tensor([0, 1]), classes).total.backward()
    return live.most


def test_memory_is_linear_in_the_chunk_and_hardly_grows_with_the_classes() -> None:
    clip = random_clip("ViT-B-32", **SMALL)
    found = [most_in_a_step(clip, 160, chunk) for chunk in (20, 40, 80)]
    a_prompt = (found[2] - found[1]) / 40
    assert (found[1] - found[0]) / 20 == pytest.approx(a_prompt, rel=0.05) and a_prompt > 0
    more = most_in_a_step(clip, 320, 40) - found[1]
    assert 0 < more / 160 < 0.1 * a_prompt
