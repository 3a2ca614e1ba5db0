"""A classifier that several threads use, that is pickled, copied and moved."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmrl
from mmrl import methods
from mmrl.classifier import packed as packing
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip, load_clip
from mmrl.data import Draw, Item
from mmrl.errors import MmrlError, UsageError

NAMES = ("cat", "dog", "owl")


@pytest.fixture
def classifier(small_clip: Clip) -> Classifier:
    draw = Draw("animals", 1, 1, "all", [Item("cat/1.jpg", 0)], [])
    return Classifier(methods.build("mmrl", small_clip, seed=0), trained=NAMES, template="a {}.", trained_on="animals", draw=draw)


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def loaded(content: bytes) -> Classifier:
    made: Classifier = pickle.loads(content)  # noqa: S301 - of this test
    return made


def test_threads_with_lists_of_their_own(classifier: Classifier, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """More lists than are kept, asked by many threads at once: every answer is that of one thread, and no head is made twice at a time."""
    lists = [[*NAMES, f"animal {i}"] for i in range(7)]
    expected = [classifier.predict_proba(photo, names) for names in lists]
    classifier._heads.clear()
    jobs = [i for _ in range(8) for i in range(len(lists))]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: classifier.predict_proba(photo, lists[i]), jobs))
    assert all(np.array_equal(each, expected[i]) for i, each in zip(jobs, found))
    assert len(classifier._heads) <= 4
    made: list[int] = []
    make = classifier.method.head
    monkeypatch.setattr(classifier.method, "head", lambda classes: (made.append(1), make(classes))[1])
    classifier._heads.clear()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: classifier.predict(photo), range(16)))
    assert len(made) == 1


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled(classifier: Classifier, photo: Image.Image, protocol: int) -> None:
    again = loaded(pickle.dumps(classifier, protocol))
    assert (again.trained, again.template, again.trained_on, again.draw) == (NAMES, "a {}.", "animals", classifier.draw)
    assert again.method is not classifier.method and again.method.options == classifier.method.options
    assert again.method.clip is classifier.method.clip  # the weights are there once
    assert np.array_equal(again.predict_proba(photo, ["cat", "wolf"]), classifier.predict_proba(photo, ["cat", "wolf"]))


def test_without_the_weights_of_a_backbone_with_a_name(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = load_clip("tiny", device="cpu")
    classifier = Classifier(methods.build("clip-adapter", clip, seed=0), trained=NAMES)
    content = pickle.dumps(classifier)
    assert len(content) < 600_000 < sum(value.nbytes for value in clip.model.state_dict().values())
    monkeypatch.setattr(packing, "_LIVING", {})  # another process
    again = loaded(content)
    assert again.method.clip is not clip and again.method.clip.name == "tiny" and again.device.type == "cpu"
    assert np.array_equal(again.predict_proba(photo), classifier.predict_proba(photo))
    other = load_clip("tiny", device="cpu")
    other.__dict__["identity"] = "other weights"
    monkeypatch.setattr(packing, "_LIVING", {})
    monkeypatch.setattr(packing, "load_clip", lambda name, device: other)
    with pytest.raises(MmrlError, match="the backbone 'tiny' has other weights here than where this classifier was pickled"):
        loaded(content)


def test_with_the_weights_of_a_backbone_without_a_name(
    classifier: Classifier, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pickle.dumps(classifier)
    monkeypatch.setattr(packing, "_LIVING", {})
    again = loaded(content)
    assert again.method.clip is not classifier.method.clip and again.method.clip.identity == classifier.method.clip.identity
    assert np.array_equal(again.predict_proba(photo), classifier.predict_proba(photo))


def test_copied_and_moved(classifier: Classifier, photo: Image.Image, tmp_path: Path) -> None:
    twin = copy.deepcopy(classifier)
    with torch.no_grad():
        for parameter in twin.method.parameters():
            parameter.add_(0.05)
    assert not np.array_equal(twin.predict_proba(photo), classifier.predict_proba(photo))
    assert classifier.to("cpu") is classifier and classifier.device == torch.device("cpu")
    with pytest.raises(UsageError, match="device 'meta' cannot be used here"):
        classifier.to("meta")
    zero_shot = loaded(pickle.dumps(mmrl.zero_shot(classifier.method.clip)))
    assert zero_shot.classes == () and zero_shot.predict(photo, NAMES) in NAMES
