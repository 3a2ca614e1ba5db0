"""Images in, class names out: every kind of image, changed class lists, saving and loading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmrl
from mmrl import methods
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from mmrl.errors import MmrlError, UsageError

NAMES = ("cat", "dog", "great_white shark")


@pytest.fixture
def classifier(small_clip: Clip) -> Classifier:
    return Classifier(methods.build("mmrl", small_clip, seed=0), trained=NAMES, template="a photo of a {}.")


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def test_every_kind_of_image_gives_the_same(classifier: Classifier, photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo.save(path)
    array = np.asarray(photo)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [photo, path, str(path), array, tensor]
    answers = [classifier.predict(form) for form in forms]
    assert len(set(answers)) == 1 and answers[0] in NAMES
    probabilities = classifier.predict_proba(forms)
    assert probabilities.shape == (5, 3) and np.allclose(probabilities.sum(1), 1)
    assert np.linalg.norm(probabilities - probabilities[0]) < 1e-4 * np.linalg.norm(probabilities)
    batch = torch.stack([tensor, tensor])
    assert classifier.predict(batch) == [answers[0]] * 2
    assert classifier.predict([]) == []


def test_new_classes_by_name(classifier: Classifier, photo: Image.Image) -> None:
    ranked = classifier.rank([photo], ["dog", "zebra", "great white shark"], top=9)[0]
    assert {p.name: p.trained for p in ranked} == {"dog": True, "zebra": False, "great white shark": True}
    assert [g.probability for g in ranked] == sorted((g.probability for g in ranked), reverse=True)
    assert sum(g.probability for g in ranked) == pytest.approx(1)


def test_of_equal_scores_the_first_comes_first(classifier: Classifier, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"class {number}" for number in range(20)]
    monkeypatch.setattr(classifier.method, "logits", lambda pixels, head, seen: torch.arange(20).div(4, rounding_mode="floor")[None].neg())
    for top in (2, 19, 30):  # the first two end among four that are equal
        (ranked,) = classifier.rank([photo], names, top=top)
        assert [each.name for each in ranked] == names[:top]
    assert classifier.predict(photo, names) == names[0]


def test_class_features_follow_the_parameters(classifier: Classifier, photo: Image.Image) -> None:
    before = classifier.predict_proba(photo)
    assert np.array_equal(before, classifier.predict_proba(photo))
    with torch.no_grad():
        for parameter in classifier.method.parameters():
            parameter.add_(0.05)
    assert not np.array_equal(before, classifier.predict_proba(photo))


def test_save_and_load(classifier: Classifier, small_clip: Clip, photo: Image.Image, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path / "adapter")
    loaded = mmrl.from_pretrained(tmp_path / "adapter", backbone=small_clip)
    assert loaded.trained == NAMES and loaded.template == classifier.template
    assert np.array_equal(loaded.predict_proba(photo, ["cat", "owl"]), classifier.predict_proba(photo, ["cat", "owl"]))
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_bad_input(classifier: Classifier, small_clip: Clip, photo: Image.Image, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(UsageError, match=r"broken\.jpg"):
        classifier.predict([photo, broken])
    with pytest.raises(UsageError, match="stands twice"):
        classifier.predict(photo, ["a", "a"])
    with pytest.raises(UsageError, match="blank"):
        classifier.predict(photo, ["a", " "])
    with pytest.raises(UsageError, match="reads 24"):
        classifier.predict(photo, ["dog " * 40])
    with pytest.raises(UsageError, match="must be strings, but one of the class list is 2"):
        classifier.predict(photo, ["a", 2])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="images is of type NoneType"):
        classifier.predict(None)
    with pytest.raises(UsageError, match="top is 0"):
        classifier.rank([photo], top=0)
    with pytest.raises(UsageError, match="no classes of its own"):
        mmrl.zero_shot(small_clip).predict(photo)


def test_what_is_no_adapter_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(name: str, **_: object) -> str:
        asked.append(name)
        raise OSError("It is not there. A long story of switches follows.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("nowhere", "runs/x", "my runs/x", "a/b/c", "/x", "./x", "~/x", "org/", "-org/x"):
        with pytest.raises(UsageError, match="neither a folder that exists nor a hub name ORG/NAME"):
            mmrl.from_pretrained(name)
    assert not asked
    why = "it was not downloaded before, and HF_HUB_OFFLINE is set"
    with pytest.raises(MmrlError, match=f"^'org/x' is no folder here, and cannot be fetched from the model hub: {why}.$"):
        mmrl.from_pretrained("org/x")
    assert asked == ["org/x"]


@pytest.mark.filterwarnings("ignore::mmrl.engine.BelowZeroShotWarning")
def test_fit_takes_options_as_keywords() -> None:
    clf = mmrl.fit("mini:digits", method="mmrlpp", shots=1, epochs=2, batch_size=10, beta=0.5, overrides={"lam": 0.25}, progress=False)
    assert clf.trained[:2] == ("zero", "one") and clf.template == "the handwritten digit {}."
    assert (clf.method.options.beta, clf.method.options.lam) == (0.5, 0.25)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"did you mean 'epochs'"):
        mmrl.fit("mini:digits", epoch=2)
