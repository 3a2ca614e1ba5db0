"""The estimator of scikit-learn: all of its own checks, on tables drawn as pictures, and the tools that people put estimators into."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

import mmrl
from mmrl.clip import random_clip
from mmrl.errors import UsageError
from mmrl.sklearn import MMRLClassifier

pytestmark = pytest.mark.filterwarnings("ignore::mmrl.errors.Notice")


class OfTables(MMRLClassifier):
    """The estimator on a table of numbers: each row is drawn as a picture. What it adds is what `X` being a table asks for, so that what
    scikit-learn's checks say is of the estimator itself."""

    def _images(self, X: Any) -> list[Any]:
        if not hasattr(self, "_low"):
            X = validate_data(self, X, dtype=np.float64)
            self._low, self._high = X.min(0), X.max(0)
        else:
            X = validate_data(self, X, dtype=np.float64, reset=False)
        shades = np.clip((X - self._low) / np.maximum(self._high - self._low, 1e-9), 0, 1)
        return [np.kron(np.resize(row, (2, 4)), np.ones((4, 2))) for row in shades]

    def fit(self, X: Any, y: Any) -> OfTables:
        if hasattr(self, "_low"):
            del self._low
        super().fit(X, y)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False
        return tags


@pytest.fixture(autouse=True, scope="module")
def smallest() -> Iterator[None]:
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 4, "image_size": 8}
    clip = random_clip(
        "ViT-B-32", embed_dim=24, vision_cfg=vision, text_cfg={"layers": 1, "width": 16, "heads": 1, "context_length": 16}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmrl.sklearn._backbone", lambda name, device: clip)
        yield


@parametrize_with_checks([OfTables("linear-probe")])
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def pictures() -> tuple[Any, Any]:
    """24 pictures (n, 8, 8, 3) of three colours, and their names."""
    random = np.random.default_rng(0)
    labels = np.array(["red", "green", "blue"] * 8)
    X = random.integers(0, 80, (24, 8, 8, 3), dtype=np.uint8)
    for at, label in enumerate(labels):
        X[at, ..., ["red", "green", "blue"].index(label)] += 170
    return X, labels


def test_every_form_of_images(pictures: tuple[Any, Any], tmp_path: Path) -> None:
    X, y = pictures
    paths = []
    for at, picture in enumerate(X):
        Image.fromarray(picture).save(tmp_path / f"{at:02}.png")
        paths.append(str(tmp_path / f"{at:02}.png"))
    estimator = MMRLClassifier("linear-probe").fit(X, y)
    assert estimator.classes_.tolist() == ["blue", "green", "red"]
    expected = estimator.predict_proba(X)
    np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-12)
    assert estimator.predict(X).tolist() == estimator.classes_[expected.argmax(1)].tolist() and estimator.score(X, y) > 0.9
    pandas = pytest.importorskip("pandas")
    column = np.array(paths, object)[:, None]
    for form in (paths, np.array(paths), column, pandas.DataFrame({"path": paths}), pandas.Series(paths), X.transpose(0, 3, 1, 2), list(X)):
        np.testing.assert_allclose(estimator.predict_proba(form), expected, rtol=1e-4)
    np.testing.assert_allclose(MMRLClassifier("linear-probe").fit(paths, y).predict_proba(paths), expected, rtol=1e-4)
    flat = MMRLClassifier("linear-probe", image_shape=(8, 8, 3)).fit(X.reshape(24, -1), y)
    np.testing.assert_allclose(flat.predict_proba(X.reshape(24, -1)), expected, rtol=1e-4)
    assert MMRLClassifier("linear-probe").fit(X[..., 0], y).predict(X[..., 0]).shape == (24,)
    cases: dict[str, Any] = {
        r"X has shape \(24, 192\); it must be an array": X.reshape(24, -1), "X is a str": "photos", "X has 5 dimensions": X[None],
        "X is a table of 2 columns": pandas.DataFrame({"a": paths, "b": paths}), "X has 23 images and y 24 labels": X[1:],
    }  # fmt: skip
    for message, wrong in cases.items():
        with pytest.raises(UsageError, match=message):
            MMRLClassifier("linear-probe").fit(wrong, y)
    with pytest.raises(UsageError, match=r"X has 192 values a row, and image_shape \(8, 8\) 64"):
        MMRLClassifier("linear-probe", image_shape=(8, 8)).fit(X.reshape(24, -1), y)


def test_labels_of_any_kind_and_names_for_them(pictures: tuple[Any, Any]) -> None:
    X, y = pictures
    numbers = np.array([{"red": 7, "green": 3, "blue": 5}[name] for name in y])
    named = MMRLClassifier("linear-probe", class_names={3: "green", 5: "blue", 7: "red"}).fit(X, numbers)
    assert named.classes_.tolist() == [3, 5, 7] and {*named.classifier_.classes} == {"red", "green", "blue"}
    assert named.score(X, numbers) > 0.9
    assert MMRLClassifier("linear-probe").fit(X, numbers).classifier_.classes == ("3", "5", "7")
    with pytest.raises(UsageError, match="class_names has no name for the label 5; it has 3"):
        MMRLClassifier("linear-probe", class_names={3: "green"}).fit(X, numbers)
    with pytest.raises(UsageError, match="y has one class, 'red'"):
        MMRLClassifier("linear-probe").fit(X[:3], ["red"] * 3)


def test_tools_of_scikit_learn(pictures: tuple[Any, Any]) -> None:
    X, y = pictures
    estimator = MMRLClassifier("linear-probe", options={"c": 1.0})
    assert cross_val_score(estimator, X, y, cv=3).mean() > 0.9
    pipeline = make_pipeline(FunctionTransformer(lambda images: images[:, ::-1]), estimator).fit(X, y)
    assert pipeline.score(X, y) > 0.9
    calibrated = CalibratedClassifierCV(estimator, cv=3, method="sigmoid").fit(X, y)
    assert calibrated.predict_proba(X).shape == (24, 3) and calibrated.score(X, y) > 0.9
    search = GridSearchCV(estimator, {"options": [{"c": 1e-9}, {"c": 1.0}]}, cv=2).fit(X, y)
    assert search.best_params_ == {"options": {"c": 1.0}}
    with pytest.raises(UsageError, match="unknown option"):
        clone(estimator).set_params(options={"cc": 1}).fit(X, y)


def test_cloned_and_pickled(pictures: tuple[Any, Any]) -> None:
    X, y = pictures
    fitted = mmrl.MMRLClassifier("linear-probe", template="the colour {}.", random_state=3).fit(X, y)
    twin = clone(fitted)
    assert twin.get_params() == fitted.get_params() and not hasattr(twin, "classifier_")
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301 - of this test
    check_is_fitted(again)
    assert np.array_equal(again.predict_proba(X), fitted.predict_proba(X)) and again.classifier_.template == "the colour {}."
    assert again.classifier_.report.record.trained.seed == 3
