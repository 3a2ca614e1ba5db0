"""A classifier on labelled images: scores, what was answered for each, which classes compete, and which images count."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmrl
from mmrl import engine, methods, trust
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from mmrl.data import BrokenImageWarning, Draw, load_dataset, read_folder
from mmrl.errors import Notice, UsageError

NAMES = ("red thing", "blue thing", "cat")


@pytest.fixture
def classifier(small_clip: Clip) -> Classifier:
    return Classifier(methods.build("mmrl", small_clip, seed=0), trained=NAMES, template="a photo of a {}.")


def test_scores_are_those_of_the_probabilities(classifier: Classifier, photos: Path) -> None:
    report = classifier.evaluate(photos)
    dataset = read_folder(photos)
    assert report.classes == NAMES and report.count == 16 and report.images == tuple(str(photos / item.key) for item in dataset.train)
    probabilities = classifier.predict_proba(list(report.images))
    labels = np.array([NAMES.index(dataset.classes[item.label]) for item in dataset.train])
    predicted = probabilities.argmax(1)
    assert report.answers.labels.tolist() == labels.tolist() and report.answers.predicted.tolist() == predicted.tolist()
    np.testing.assert_allclose(report.answers.confidence, probabilities.max(1), rtol=1e-5)
    np.testing.assert_allclose(report.answers.of_true, probabilities[np.arange(16), labels], rtol=1e-4)
    assert report.top1 == np.mean(predicted == labels) and report.top5 == 1
    assert report.per_class["cat"] is None and report.confusion.sum() == 16
    assert report.confusion.tolist() == [[int(((labels == i) & (predicted == j)).sum()) for j in range(3)] for i in range(3)]
    wrong = report.wrong
    surest = sorted(np.flatnonzero(predicted != labels), key=lambda i: -probabilities[i].max())
    assert [each.image for each in wrong] == [report.images[i] for i in surest]
    assert all(w.true != w.predicted and w.probability >= w.of_true for w in wrong)
    assert report.image(report.images[0]).size == (56, 48)
    frozen = mmrl.zero_shot(classifier.method.clip, template=classifier.template).evaluate(photos, NAMES)
    assert report.zero_shot == frozen.scores == frozen.zero_shot
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["scores"]["top1"] == report.top1 and len(plain["wrong"]) == len(wrong)
    assert f"top-1 {report.top1:.1%} of 16 images (zero-shot {report.zero_shot.top1:.1%})" in repr(report)  # type: ignore[union-attr]
    assert report._repr_html_().count("<figure") == min(len(wrong), 12)


def test_a_calibrated_classifier_is_measured_by_the_probabilities_that_it_gives(classifier: Classifier, photos: Path) -> None:
    raw = classifier.evaluate(photos)
    assert raw.temperature is None and raw.raw_ece is None and raw.scores == raw.record.scores
    assert "(raw" not in repr(raw) and "before calibration" not in raw._repr_html_()
    random = np.random.default_rng(2)
    noise = [random.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(24)]
    classifier.calibrate((noise, [NAMES[i % 3] for i in range(24)]))
    report = classifier.evaluate(photos)
    probabilities = classifier.predict_proba(list(report.images))
    labels, predicted, confidence, of_true = report.answers
    np.testing.assert_allclose(confidence, probabilities.max(1), rtol=1e-5)
    np.testing.assert_allclose(of_true, probabilities[np.arange(16), labels], rtol=1e-4)
    bins = trust.calibration_bins(probabilities.max(1), predicted == labels)
    assert report.ece == pytest.approx(trust.expected_calibration_error(bins), abs=1e-6) and report.ece != raw.ece == report.raw_ece
    assert [each.count for each in report.scores.bins] == [each.count for each in bins]
    assert report.record.scores == raw.scores and report.zero_shot == raw.zero_shot and (predicted == raw.answers.predicted).all()
    assert report.temperature == classifier.trust.temperature
    plain = json.loads(json.dumps(report.to_dict()))
    assert (plain["scores"]["ece"], plain["raw_ece"], plain["temperature"]) == (report.ece, raw.ece, report.temperature)
    assert f"calibration error {report.ece:.1%} (raw {raw.ece:.1%})" in repr(report)
    shown = report._repr_html_()
    assert "before calibration" in shown and f"<td>{100 * report.ece:.1f} %</td><td>{100 * raw.ece:.1f} %</td>" in shown
    copy = pickle.loads(pickle.dumps(report))  # noqa: S301 - our own
    assert copy.scores == report.scores and copy.raw_ece == raw.ece


def test_which_classes_compete(classifier: Classifier, photos: Path) -> None:
    of_data = classifier.evaluate(photos, "data")
    assert of_data.classes == ("blue thing", "red thing") and of_data.answers.labels.tolist() == [0] * 8 + [1] * 8
    listed = classifier.evaluate(photos, ["owl", "Red_Thing", "blue thing"])
    assert listed.classes == ("owl", "Red_Thing", "blue thing") and listed.record.seen == (False, True, True)
    assert classifier.evaluate(photos, "owl,Red_Thing,blue thing").scores == listed.scores
    with pytest.raises(UsageError, match="images of '.*' are of red thing, which is not among the classes that compete, .*among='data'"):
        classifier.evaluate(photos, ["blue thing", "owl"])
    other = Classifier(classifier.method, trained=("owl",))
    with pytest.raises(UsageError, match="are of blue thing, red thing, which are not among the classes that this classifier was"):
        other.evaluate(photos)
    assert mmrl.zero_shot(classifier.method.clip).evaluate(photos).classes == of_data.classes


def test_the_fused_classifier_is_for_trained_classes(classifier: Classifier, photos: Path) -> None:
    seen = engine.evaluate_dataset(classifier.method, read_folder(photos), read_folder(photos).train, seen=True).adapted
    assert classifier.evaluate(photos, "data", template="a photo of a {}.").scores == seen
    alone = classifier.evaluate(photos, "data", classifier="class")
    assert alone.scores == engine.evaluate_dataset(classifier.method, read_folder(photos), read_folder(photos).train, seen=False).adapted
    assert alone.record.classifier == "the class token alone, as asked for" and alone.scores != seen


def test_images_that_were_trained_on_do_not_count(classifier: Classifier, photos: Path) -> None:
    dataset = read_folder(photos)
    classifier.draw = Draw(dataset.name, 2, 1, "all", [dataset.train[0], dataset.train[9]], [])
    with pytest.warns(Notice, match="14 images of '.*' test .the 2 that it was trained on are left out"):
        rest = classifier.evaluate(photos)
    assert rest.count == 14 and not {str(photos / item.key) for item in classifier.draw.train} & {*rest.images}
    assert classifier.evaluate(photos, include_trained=True).count == 16
    assert classifier.evaluate(photos, split="train").images == tuple(str(photos / item.key) for item in classifier.draw.train)
    classifier.draw = Draw(dataset.name, 8, 1, "all", dataset.train, [])
    with pytest.raises(UsageError, match="every image of '.*' was drawn to train this classifier"):
        classifier.evaluate(photos)
    classifier.draw = Draw("other photos", 8, 1, "all", dataset.train, [])
    assert classifier.evaluate(photos).count == 16


def test_a_broken_image_stops_or_is_listed(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"nothing")
    data = ([photos / "red_thing" / "0.jpg", broken, photos / "blue thing" / "1.jpg"], ["red thing", "red thing", "blue thing"])
    with pytest.raises(UsageError, match=r"broken\.jpg"):
        classifier.evaluate(data)
    with pytest.warns(BrokenImageWarning):
        report = classifier.evaluate(data, skip_broken=True)
    assert report.count == 2 and [each.key for each in report.skipped] == [str(broken)]
    assert report.images == (str(photos / "blue thing" / "1.jpg"), str(photos / "red_thing" / "0.jpg"))


def test_data_with_parts(small_clip: Clip) -> None:
    classifier = mmrl.zero_shot(small_clip)
    dataset = load_dataset("mini:digits")
    report = classifier.evaluate("mini:digits", split="val", beside_zero_shot=False)
    assert report.count == len(dataset.val) and report.zero_shot is None
    assert report.record.template == dataset.template != classifier.template  # a known set has its own prompt
    with pytest.raises(UsageError, match="unknown split 'tset'"):
        classifier.evaluate("mini:digits", split="tset")


def test_score_is_the_share_of_right_answers(classifier: Classifier, photos: Path) -> None:
    files = [photos / "red_thing" / "0.jpg", photos / "blue thing" / "0.jpg"]
    answers = classifier.predict(files)
    assert classifier.score(files, answers) == 1
    assert classifier.score(files, [answers[0], next(name for name in NAMES if name != answers[1])]) == 0.5
    assert classifier.score(photos) == classifier.evaluate(photos).top1


def test_pictures_in_memory(classifier: Classifier) -> None:
    red = Image.new("RGB", (40, 40), "red")
    report = classifier.evaluate(([red, red], ["cat", "red thing"]))
    assert report.count == 2 and report.top1 == 0.5
    assert report.image(report.images[0]).getpixel((0, 0)) == (255, 0, 0)
    assert report._repr_html_().count("data:image/jpeg") == 1 and red.size == (40, 40)
