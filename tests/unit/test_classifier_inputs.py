"""Everything that is an image, or several, gives the same answers; what is none is refused; one bad image costs no other its answer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl import methods
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from mmrl.data import BrokenImageWarning
from mmrl.data.sources import given_images
from mmrl.errors import UsageError

NAMES = ("cat", "dog", "great_white shark")


@pytest.fixture
def classifier(small_clip: Clip) -> Classifier:
    return Classifier(methods.build("mmrl", small_clip, seed=0), trained=NAMES, template="a photo of a {}.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one hidden file, one text, and a subfolder with a third picture."""
    random = np.random.default_rng(0)
    for name in ("b.png", "a.PNG", "deep/c.png"):
        path = tmp_path / "some photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    (tmp_path / "some photos" / "._b.png").write_bytes(b"of the system")
    (tmp_path / "some photos" / "notes.txt").write_text("none")
    return tmp_path / "some photos"


def test_files_bytes_and_open_files_are_one_image(classifier: Classifier, folder: Path) -> None:
    path = folder / "b.png"
    content = path.read_bytes()
    expected = classifier.predict_proba(path)
    stream = io.BytesIO(content)
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        for form in (str(path), Image.open(path), content, bytearray(content), memoryview(content), stream, stream, file, file, raw):
            assert np.array_equal(classifier.predict_proba(form), expected)
            assert isinstance(classifier.predict(form), str)
            assert classifier.predict([form]) == [classifier.predict(form)]
    assert np.array_equal(classifier.predict_proba([content, stream, stream]), classifier.predict_proba([path] * 3))
    with path.open(encoding="latin-1") as text, pytest.raises(UsageError, match="is read as text; open it with mode 'rb'"):
        classifier.predict(text)


def test_folders_and_patterns(classifier: Classifier, folder: Path) -> None:
    a, b, c = folder / "a.PNG", folder / "b.png", folder / "deep" / "c.png"
    both = classifier.predict_proba([a, b])
    for several in (folder, str(folder), f"{folder}/*", folder / "*.*", [folder]):
        assert np.array_equal(classifier.predict_proba(several), both), several
        assert classifier.predict(several) == classifier.predict([a, b])
    assert given_images(f"{folder}/**/*.[pP][nN][gG]").names == [str(a), str(b), str(c)]
    assert classifier.predict(f"{folder}/deep") == [classifier.predict(c)]  # a folder of one is a list of one
    assert classifier.predict([a, folder, c]) == classifier.predict([a, a, b, c])
    a.rename(folder / "a[1].PNG")
    assert isinstance(classifier.predict(folder / "a[1].PNG"), str)  # a file of that name is no pattern
    (folder / "none").mkdir()
    with pytest.raises(UsageError, match="has no images directly in it .*avif"):
        classifier.predict(folder / "none")
    with pytest.raises(UsageError, match="For those in its subfolders give a pattern: '.*/\\*\\*/\\*'"):
        classifier.predict(folder.parent)
    with pytest.raises(UsageError, match=r"'.*\*.bmp' gives no image: no file matches"):
        classifier.predict(f"{folder}/*.bmp")
    with pytest.raises(UsageError, match="1 files match, and none ends as an image does"):
        classifier.predict(f"{folder}/*.txt")


def test_arrays_of_paths_and_tensors(classifier: Classifier, folder: Path) -> None:
    paths = np.array([str(folder / "a.PNG"), str(folder / "b.png")])
    pictures = np.stack([np.asarray(Image.open(path)) for path in paths])
    expected = classifier.predict_proba(list(paths))
    for several in (paths, paths.astype(object), (each for each in paths), pictures, torch.from_numpy(pictures).permute(0, 3, 1, 2)):
        np.testing.assert_allclose(classifier.predict_proba(several), expected, rtol=1e-4)
    for none in (None, 3, {"a.png": 1}, [3], object()):
        with pytest.raises(UsageError, match="images is of type|an image must be a path"):
            classifier.predict(none)


def test_one_bad_image_costs_no_other_its_answer(classifier: Classifier, folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    good = folder / "a.PNG"
    mixed = [folder / "gone.png", good, folder / "broken.jpg", b"no image", folder / "b.png"]
    with pytest.raises(UsageError, match=r"gone\.png does not exist"):
        classifier.predict(mixed)
    with pytest.warns(BrokenImageWarning, match=r"3 of 5 images left out, missing or broken: .*gone\.png"):
        answers = classifier.predict(mixed, skip_broken=True)
    assert [answer is None for answer in answers] == [True, False, True, True, False]
    assert [answers[1], answers[4]] == classifier.predict([good, folder / "b.png"])
    with pytest.warns(BrokenImageWarning):
        probabilities = classifier.predict_proba(mixed, skip_broken=True)
    assert np.isnan(probabilities).all(1).tolist() == [True, False, True, True, False]
    assert np.array_equal(probabilities[[1, 4]], classifier.predict_proba([good, folder / "b.png"]))
    with pytest.warns(BrokenImageWarning):
        ranked = classifier.rank(mixed, skip_broken=True)
    assert [len(each) for each in ranked] == [0, 3, 0, 0, 3] and ranked[1][0].name == answers[1]
    with pytest.warns(BrokenImageWarning):
        assert np.isnan(classifier.embed(mixed, skip_broken=True)).all(1).tolist() == [True, False, True, True, False]
    with pytest.raises(UsageError, match="none of the 2 images can be read"):
        classifier.predict([folder / "gone.png", b"none"], skip_broken=True)


@pytest.mark.parametrize("name", ["mmrl", "coop", "clip-adapter", "plot", "zero-shot"])
def test_embeddings(small_clip: Clip, folder: Path, name: str) -> None:
    method = methods.build(name, small_clip, seed=0)
    classifier = Classifier(method, trained=NAMES)
    found = classifier.embed(folder)
    assert found.shape == (2, 48) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert classifier.embed(folder / "b.png").shape == (1, 48)
    frozen = Classifier(methods.build("zero-shot", small_clip)).embed(folder)
    assert np.array_equal(found, frozen) == (name in ("coop", "plot", "zero-shot"))


def test_names_in_one_text_are_split(classifier: Classifier, folder: Path) -> None:
    listed = classifier.predict_proba(folder, ["owl", "red fox", "cat"])
    assert np.array_equal(classifier.predict_proba(folder, "owl, red fox,cat"), listed)
    (folder / "names.txt").write_text("owl\nred fox\ncat\n")
    assert np.array_equal(classifier.predict_proba(folder, str(folder / "names.txt")), listed)
    with pytest.raises(UsageError, match="class name number 2 of 2 in the class list is blank"):
        classifier.predict(folder, "owl,")
    with pytest.raises(UsageError, match=r"class name 'Red_Fox' stands twice .* as numbers 1 and 3 \(as 'red fox' and as 'Red_Fox'\)"):
        classifier.predict(folder, ["red fox", "owl", "Red_Fox"])
