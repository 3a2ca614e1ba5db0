"""A classifier that says what its answers are worth: calibrated, rejecting, with sets; from training to the saved adapter."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import mmrl
from mmrl import api, methods, trust
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from mmrl.data import Dataset, Draw, Item, draw_shots
from mmrl.engine.adapter import read_config
from mmrl.engine.calibrate import LEAST, held_out_images, set_apart
from mmrl.errors import MmrlError, Notice, UsageError
from mmrl.trust.rejection import UNKNOWN
from mmrl.trust.state import Trust

NAMES = ("cat", "dog", "great_white shark")
TEMPLATE = "a photo of a {}."


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(count)]


def labelled(count: int = 30, names: tuple[str, ...] = NAMES, seed: int = 1) -> tuple[list[np.ndarray], list[str]]:
    return pictures(count, seed), [names[i % len(names)] for i in range(count)]


@pytest.fixture
def classifier(small_clip: Clip) -> Classifier:
    return Classifier(methods.build("mmrl", small_clip, seed=0), trained=NAMES, template=TEMPLATE)


@pytest.fixture
def calibrated(classifier: Classifier) -> Classifier:
    classifier.calibrate(labelled())
    return classifier


def logits(classifier: Classifier, images: list[np.ndarray], names: tuple[str, ...] = NAMES) -> np.ndarray:
    """By way of probabilities: up to a constant for each image, which no softmax sees."""
    return np.log(classifier.predict_proba(images, list(names), calibrated=False).astype(np.float64))


def test_a_calibration_is_what_its_images_say(calibrated: Classifier) -> None:
    images, names = labelled()
    z, y = logits(calibrated, images), [NAMES.index(name) for name in names]
    found = calibrated.trust
    assert found is not None and found.images == 30 and found.source == "given" and found.classes == NAMES and found.template == TEMPLATE
    assert found.accuracy == pytest.approx(np.mean(z.argmax(1) == y))
    assert found.temperature == pytest.approx(trust.fit_temperature(z, y, smoothing=1 / 31), rel=1e-3)
    p = trust.calibrated_probabilities(z, temperature=found.temperature)
    np.testing.assert_allclose(calibrated.predict_proba(images), p, rtol=1e-3)
    raw = calibrated.predict_proba(images, calibrated=False)  # so that the images are used for the quantile alone
    np.testing.assert_allclose(found.nonconformity["lac"], sorted(trust.conformal_scores(raw, y)), atol=1e-4)
    for score in ("mcm", "energy"):
        np.testing.assert_allclose(found.scores[score], sorted(calibrated.known_scores(images, score=score)), rtol=1e-5)
    np.testing.assert_allclose(calibrated.known_scores(images, score="mcm"), trust.mcm_scores(z, calibrated.method.logit_scale), rtol=1e-5)


def test_calibration_changes_probabilities_and_no_answer(calibrated: Classifier) -> None:
    images = pictures(12, 7)
    for classes in (None, ["dog", "zebra", "cat", "owl"]):
        raw, own = (calibrated.predict_proba(images, classes, calibrated=each) for each in (False, True))
        assert not np.allclose(raw, own, atol=1e-3) and (raw.argsort(1) == own.argsort(1)).all()
        ranked = calibrated.rank(images, classes, top=9)
        assert [row[0].name for row in ranked] == calibrated.predict(images, classes)
        assert [row[0].probability for row in ranked] == pytest.approx(own.max(1).tolist())
        beside = calibrated.rank(images, classes, top=9, calibrated=False)
        assert [[each.name for each in row] for row in ranked] == [[each.name for each in row] for row in beside]


def test_without_a_calibration_probabilities_are_as_they_were(classifier: Classifier) -> None:
    images = pictures(3)
    assert np.array_equal(classifier.predict_proba(images), classifier.predict_proba(images, calibrated=False))
    assert classifier.known_scores(images).shape == (3,)


def test_new_classes_may_be_calibrated_by_their_distance(calibrated: Classifier) -> None:
    images, classes = pictures(4), ("dog", "zebra", "owl")
    method = calibrated.method
    assert isinstance(method, methods.TwoTower)
    with torch.no_grad():
        base, new = method.class_list(NAMES, TEMPLATE), method.class_list(classes, TEMPLATE)
        texts = (base.zero_shot, method.text_features(base), new.zero_shot, method.text_features(new))
    factors = trust.distance_factors(*(text.double().numpy() for text in texts))
    assert factors[0] == 1 and (factors[1:] != 1).all()
    assert calibrated.trust is not None
    z = logits(calibrated, images, classes)
    expected = trust.calibrated_probabilities(z, temperature=calibrated.trust.temperature, factors=factors)
    np.testing.assert_allclose(calibrated.predict_proba(images, list(classes), calibrated="dac"), expected, rtol=1e-3)
    alone = trust.calibrated_probabilities(z, temperature=calibrated.trust.temperature)
    np.testing.assert_allclose(calibrated.predict_proba(images, list(classes)), alone, rtol=1e-3)
    own, same = (calibrated.predict_proba(images, calibrated=each) for each in (True, "dac"))  # type: ignore[arg-type]
    assert np.array_equal(own, same)
    with pytest.raises(UsageError, match="unknown calibration 'dca'. Did you mean 'dac'"):
        calibrated.rank(images, calibrated="dca")  # type: ignore[arg-type]


def test_gda_takes_a_temperature_to_trained_classes_alone(small_clip: Clip) -> None:
    own = {"shots": 4, "augment_epoch": 2, "holdout": 0, "calibrate": False, "progress": False}
    gda = mmrl.fit(labelled(24), method="gda", backbone=small_clip, **own)
    images, (short, mixed, new) = pictures(6, 7), (["dog", "cat"], ["dog", "zebra", "cat", "owl"], ["owl", "zebra"])

    def divided(names: list[str] | None) -> bool:
        """Whether probabilities are at the temperature; else they are as they are."""
        plain, found = (gda.predict_proba(images, names, calibrated=each) for each in (False, True))
        assert np.array_equal(found, gda.predict_proba(images, names, calibrated="dac"))
        if np.array_equal(plain, found):
            return False
        assert gda.trust is not None
        z = np.log(plain.astype(np.float64) + 1e-300)
        np.testing.assert_allclose(found, trust.calibrated_probabilities(z, temperature=gda.trust.temperature), rtol=1e-3, atol=1e-5)
        return True

    gda.calibrate(labelled(30, seed=9))
    assert gda.trust is not None and abs(gda.trust.temperature - 1) > 0.05
    assert [divided(names) for names in (None, short, mixed, new)] == [True, True, False, False]
    gda.calibrate(labelled(30, seed=9), classes=[*mixed, "great_white shark"])
    assert [divided(names) for names in ([*mixed, "great_white shark"], None, mixed, new)] == [True, False, False, False]


def test_rejection_at_a_recall_and_at_a_threshold(calibrated: Classifier) -> None:
    images, _ = labelled()
    scores = calibrated.known_scores(images)
    plain, answers = calibrated.predict(images), calibrated.predict(images, reject=True, recall=0.7)
    assert answers.count(UNKNOWN) == 30 - 22  # the 22nd of 31 kept: 0.7 x 31 rounded up
    assert all(answer in (UNKNOWN, own) for answer, own in zip(answers, plain))
    middle = float(np.median(scores))
    assert [answer == UNKNOWN for answer in calibrated.predict(images, threshold=middle)] == (scores < middle).tolist()
    assert calibrated.predict(images, recall=0.7) == answers
    assert calibrated.predict(images, reject=True) == calibrated.predict(images, recall=0.95)
    assert calibrated.predict(images[0], threshold=1e4) == UNKNOWN == mmrl.UNKNOWN == "unknown"
    judged = calibrated.judge(images, recall=0.7, top=2)
    assert [each.unknown for each in judged] == [answer == UNKNOWN for answer in answers]
    assert [each.score for each in judged] == pytest.approx(scores.tolist()) and [each.ranked[0].name for each in judged] == plain
    other = calibrated.predict(images, recall=0.7, score="mcm")
    assert other.count(UNKNOWN) == 8 and other != answers


def test_images_left_out_are_not_rejected(calibrated: Classifier, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    images = [pictures(1)[0], str(tmp_path / "broken.jpg")]
    with pytest.warns(UserWarning, match="broken"):
        assert calibrated.predict(images, threshold=1e4, skip_broken=True) == [UNKNOWN, None]
    with pytest.warns(UserWarning, match="broken"):
        first, second = calibrated.judge(images, threshold=1e4, skip_broken=True)
    assert first.unknown and not second.unknown and np.isnan(second.score) and second.ranked == []
    with pytest.warns(UserWarning, match="broken"):
        assert [bool(each) for each in calibrated.predict_sets(images, skip_broken=True)] == [True, False]


def test_sets_hold_the_likeliest_classes(calibrated: Classifier) -> None:
    images, names = labelled()
    for method in ("lac", "aps"):
        found = calibrated.predict_sets(images, coverage=0.8, method=method)
        assert np.mean([name in own for name, own in zip(names, found)]) >= 0.8  # on the images that it was fitted to
        order = [[each.name for each in row] for row in calibrated.rank(images, top=3)]
        assert all(own == row[: len(own)] and own for own, row in zip(found, order))
    assert calibrated.predict_sets(images[0], coverage=0.99) == order[0]  # 30 images cannot tell 99 %
    assert calibrated.predict_sets(images[:1], ["great white shark", "Dog", "cat"])  # the same classes, as they may be written


def test_what_needs_a_calibration_says_how_to_make_one(classifier: Classifier, calibrated: Classifier) -> None:
    image = pictures(1)[0]
    fresh = Classifier(classifier.method, trained=NAMES, template=TEMPLATE)
    for call in (lambda: fresh.predict(image, reject=True), lambda: fresh.judge(image), lambda: fresh.predict_sets(image)):
        with pytest.raises(UsageError, match=r"not calibrated.*clf.calibrate\(DATA\).*mmrl calibrate ADAPTER DATA"):
            call()
    assert fresh.predict(image, threshold=1e4) == UNKNOWN
    with pytest.raises(UsageError, match="coverage is known among the 3 classes that were calibrated .*not among these 2"):
        calibrated.predict_sets(image, ["cat", "owl"])
    with pytest.warns(Notice, match="fitted among other classes .*, so how many"):
        calibrated.predict(image, ["cat", "owl"], reject=True)
    with pytest.warns(Notice, match="with another prompt"):
        calibrated.predict(image, reject=True, template="{}.")
    with pytest.raises(UsageError, match="'Unknown' is one of the classes, and also the answer"):
        calibrated.predict(image, ["cat", "Unknown"], threshold=0.5)
    assert calibrated.predict(image, ["Unknown"]) == "Unknown"
    cases = {
        "recall is 0.9 and threshold is 0.5; give one": {"recall": 0.9, "threshold": 0.5},
        "recall is 95; it is a share": {"recall": 95},
        "threshold is nan": {"threshold": float("nan")},
        "unknown rejection score 'msp'": {"score": "msp"},
    }
    for message, options in cases.items():
        with pytest.raises(UsageError, match=message):
            calibrated.predict(image, **options)
    with pytest.raises(UsageError, match="coverage is 90"):
        calibrated.predict_sets(image, coverage=90)
    with pytest.raises(UsageError, match="unknown kind of prediction sets 'lca'. Did you mean 'lac'"):
        calibrated.predict_sets(image, method="lca")


def test_zero_shot_is_calibrated_among_the_classes_of_the_data(small_clip: Clip) -> None:
    classifier = Classifier(methods.build("zero-shot", small_clip), template=TEMPLATE)
    found = classifier.calibrate(labelled(names=("owl", "zebra")))
    assert found.classes == ("owl", "zebra")
    images = pictures(5)
    assert set(classifier.predict(images, ["zebra", "owl"], reject=True)) <= {"zebra", "owl", UNKNOWN}
    assert all(set(own) <= {"zebra", "owl"} for own in classifier.predict_sets(images))
    p = classifier.predict_proba(images, ["zebra", "emu"], calibrated=False).astype(np.float64)
    expected = trust.calibrated_probabilities(np.log(p), temperature=found.temperature)  # no class is trained, so none is near to one
    np.testing.assert_allclose(classifier.predict_proba(images, ["zebra", "emu"]), expected, rtol=1e-3)


def test_it_is_saved_loaded_and_pickled(calibrated: Classifier, small_clip: Clip, tmp_path: Path) -> None:
    folder = calibrated.save_pretrained(tmp_path / "adapter")
    loaded = mmrl.from_pretrained(folder, backbone=small_clip)
    assert loaded.trust == calibrated.trust
    image = pictures(1)
    assert np.array_equal(loaded.predict_proba(image), calibrated.predict_proba(image))
    assert pickle.loads(pickle.dumps(calibrated)).trust == calibrated.trust  # noqa: S301
    assert "Calibrated on 30 images (given later), on which it must not be measured: prob" in (folder / "README.md").read_text()
    content = json.loads((folder / "adapter_config.json").read_text())
    damages = {"temperature": 0, "scores": {"mcm": [1.0]}, "nonconformity": {"lac": [0.5], "aps": [0.5]}, "source": "test", "more": 1}
    for key, value in damages.items():
        broken = content | {"trust": content["trust"] | {key: value}}
        (folder / "adapter_config.json").write_text(json.dumps(broken))
        with pytest.raises(MmrlError, match="adapter configuration is damaged"):
            mmrl.from_pretrained(folder, backbone=small_clip)


def test_a_calibration_is_bounded() -> None:
    with pytest.raises(UsageError, match="at most 10000 images"):
        Trust.fit(np.zeros((10_001, 2)), np.zeros(10_001, int), classes=("a", "b"), template=TEMPLATE, scale=100)
    made = Trust.fit(np.eye(2), [0, 1], classes=("a", "b"), template=TEMPLATE, scale=100)
    with pytest.raises(ValidationError):
        Trust.model_validate(made.model_dump() | {"scores": {name: [0.5] * 10_001 for name in made.scores}})


def test_which_images_calibrate(small_clip: Clip, classifier: Classifier) -> None:
    few = labelled(6)
    with pytest.warns(Notice, match="calibrated on 6 images: from fewer than 20"):
        classifier.calibrate(few)
    with pytest.raises(UsageError, match="images of 'given' are of owl, which is not among the 3 classes to calibrate"):
        classifier.calibrate((pictures(2), ["cat", "owl"]))
    table = [{"image": image, "label": name, "split": "test"} for image, name in zip(*few)]
    table += [{"image": image, "label": "cat", "split": "train"} for image in pictures(1, 9)]
    with pytest.raises(UsageError, match="Calibrating on test images makes what is measured on them too good"):
        classifier.calibrate(table)
    with pytest.raises(UsageError, match="unknown split 'tset'. Did you mean 'test'"):
        classifier.calibrate(table, split="tset")
    with pytest.warns(Notice, match="on 6 images"):
        assert classifier.calibrate(table, split="test").images == 6
    classifier.draw = Draw("given", 1, 1, "all", [Item("000006-x", 0)], [])
    with pytest.warns(Notice, match="on 1 images"):
        classifier.calibrate(table, split="train")


def dataset(train: int, val: int, test: int, *, rest: bool = False) -> Dataset:
    counts = {"train": train, "val": val, "test": test}
    parts = [[Item(f"{part}/{label}/{i}", label) for label in range(3) for i in range(n)] for part, n in counts.items()]
    return Dataset("x", NAMES, TEMPLATE, *parts, read=lambda key: None, rest_tests=rest)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("data", "shots", "source", "count"),
    [
        (dataset(8, 9, 5), 2, "validation", 21),  # 2 a class are of the draw
        (dataset(8, 40, 5), 2, "validation", 48),  # at most 16 a class
        (dataset(8, 0, 5), 2, "not drawn", 18),
        (dataset(8, 4, 5), 4, "not drawn", 12),
        (dataset(4, 4, 5), 4, "validation", 12),  # the draw's own: nothing else is left
        (dataset(4, 0, 5), 4, "validation", 0),
        (dataset(9, 0, 0, rest=True), 2, "held out", 9),  # half of 7
        (dataset(30, 0, 0, rest=True), 2, "held out", 12),
        (dataset(3, 0, 0, rest=True), 2, "validation", 0),
    ],
)
def test_held_out_images_are_never_trained_nor_tested(data: Dataset, shots: int, source: str, count: int) -> None:
    draw = draw_shots(data, shots, 1)
    items, found = held_out_images(data, draw, apart=data.rest_tests)
    assert (found, len(items)) == (source, count)
    assert not {item.key for item in items} & {item.key for item in draw.train}
    assert not {item.key for item in items} & {item.key for item in data.test}
    assert items == held_out_images(data, draw, apart=data.rest_tests)[0]
    if data.rest_tests:
        assert items == set_apart(data.held_out(draw.train)) or not items


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    root = tmp_path_factory.mktemp("own") / "animals"
    random = np.random.default_rng(3)
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(14):
            pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[..., number] += 150
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


QUICK = {"epochs": 1, "warmup_epochs": 0, "batch_size": 2, "rep_dim": 8, "rep_tokens": 1}


def trained(animals: Path, **options: object) -> api.RunResult:
    return api.train(animals, shots=2, backbone="tiny", progress=False, **options)  # type: ignore[arg-type]


def test_training_calibrates_on_photos_that_do_not_test(animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrl.engine.context.LEAST", 8)
    with pytest.warns(Notice, match="2 classes, 28 photos: 4 to train, 8 to calibrate, 16 held out"):
        result = trained(animals, out=tmp_path / "run", **QUICK)
    assert result.trust is not None and result.trust.source == "held out" and result.trust.images == len(result.trust.keys) == 8
    assert result.record.metrics.all is not None and result.record.metrics.all.count == 16
    assert read_config(tmp_path / "run").trust == result.trust
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Calibrated on 8 images (held out from the test)" in card and "| all |" in card  # the scores are there too
    loaded = mmrl.from_pretrained(tmp_path / "run")
    assert loaded.trust == result.trust and set(loaded.predict(animals / "cat", reject=True)) <= {"cat", "dog", "unknown"}
    with pytest.warns(Notice, match="16 images of 'animals' test .the 4 that it was trained on and the 8 that calibrated it are left out"):
        assert loaded.evaluate(animals, beside_zero_shot=False).top1 == result.record.metrics.all.top1
    again = trained(animals, out=tmp_path / "run", resume=True, **QUICK)
    assert again.trust == result.trust and again.record.metrics == result.record.metrics


def test_a_share_that_is_held_out_calibrates_too(animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrl.engine.context.LEAST", 6)
    with pytest.warns(Notice, match="2 classes, 28 photos: 14 to train, 6 to calibrate, 8 held out"):
        classifier = api.fit(animals, method="linear-probe", backbone="tiny", holdout=0.5, progress=False)
    assert classifier.trust is not None and classifier.trust.source == "held out" and classifier.report is not None
    held = classifier.report.held_out
    assert held is not None and held.count == 8 and held.answers is not None and held.temperature == classifier.trust.temperature != 1
    np.testing.assert_allclose(held.answers.confidence, classifier.predict_proba(list(held.images)).max(1), rtol=1e-4)
    assert held.raw_ece == held.record.scores.ece == classifier.report.record.tests[0].scores.ece  # the record of a run is of raw ones
    classifier.save_pretrained(tmp_path / "saved")
    loaded = mmrl.from_pretrained(tmp_path / "saved").report
    assert loaded is not None and loaded.held_out is not None and loaded.held_out.ece == held.raw_ece
    assert f"raw calibration error {held.raw_ece:.1%}" in repr(loaded)
    assert f"calibration error {held.ece:.1%} (raw {held.raw_ece:.1%})" in repr(classifier) and "(raw" in repr(classifier.report)
    assert classifier.report.train is not None and classifier.report.train.temperature == held.temperature


@pytest.mark.parametrize(("method", "carries"), [("gda", False), ("tcp", True)])
def test_a_report_is_at_the_temperature_that_its_classes_get(
    method: str, carries: bool, small_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrl.engine.context.LEAST", 4)
    data = labelled(40, ("ant", "bee", "cow", "dog"))
    own = {"augment_epoch": 2} if method == "gda" else {"epochs": 1, "batch_size": 2}
    classifier = mmrl.fit(data, method=method, backbone=small_clip, classes="base", shots=2, progress=False, **own)
    assert classifier.trust is not None and classifier.report is not None and classifier.trust.classes == ("ant", "bee")
    held, new = classifier.report.held_out, classifier.report.new_classes
    assert held is not None and new is not None and held.temperature == classifier.trust.temperature
    assert new.temperature == (classifier.trust.temperature if carries else None) and (new.raw_ece is None) != carries


def test_a_closed_form_is_calibrated_too(animals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrl.engine.context.LEAST", 8)
    result = trained(animals, method="linear-probe")
    assert result.trust is not None and result.trust.classes == ("cat", "dog")


@pytest.mark.parametrize("options", [{}, {"calibrate": False}])
def test_too_few_photos_all_test(animals: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    assert LEAST > 8
    monkeypatch.setattr("mmrl.engine.context.LEAST", 8 if options else LEAST)
    with pytest.warns(Notice, match="2 classes, 28 photos: 4 to train, 24 held out") as told:
        result = trained(animals, method="linear-probe", **options)
    said = [str(each.message) for each in told if "not calibrated" in str(each.message)]
    assert len(said) == (0 if options else 1) and all("8 images are left of 'animals' to calibrate on, and 10 are" in each for each in said)
    assert result.trust is None and result.record.metrics.all is not None and result.record.metrics.all.count == 24
