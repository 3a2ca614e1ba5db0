"""Missing and broken images: left out when asked, counted and named; batches and scores are those of the others."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmrl import engine
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from mmrl.data import Broken, BrokenImageWarning, Dataset, Draw, Item, Preprocess, describe_broken, readable, test_batches, to_rgb
from mmrl.data.broken import warn_broken
from mmrl.data.images import REMEDY
from mmrl.data.mini.store import Store
from mmrl.data.parallel import usual_workers
from mmrl.engine import Bench, Context, FitConfig, FitResult, Job, Place, TrainingData, fit, run
from mmrl.engine.run import own_tests
from mmrl.errors import UsageError
from mmrl.protocols import Training
from tests.unit.colours import base_draw, clip_on_one_thread, colours, fresh, read, smallest_clip

clip = pytest.fixture(scope="module")(clip_on_one_thread)
CONFIG = {"epochs": 2, "batch_size": 2}


def train(clip: Clip, dataset: Dataset, items: Draw | Sequence[Item], *, skip_broken: bool = False) -> FitResult:
    place = Place(progress=False, skip_broken=skip_broken)
    return fit(fresh(clip), TrainingData.of(clip, dataset, items, FitConfig(**CONFIG), place), CONFIG, place)


def damaged(*keys: str) -> Dataset:
    """The colours, but images of these keys cannot be read."""

    def reader(key: str) -> Image.Image:
        if key in keys:
            raise UsageError(f"{key} is broken. Replace it or remove it.")
        return read(key)

    return dataclasses.replace(colours(), read=reader)


@pytest.mark.parametrize("workers", [0, 3])
def test_readable_tells_them_apart_in_order(tmp_path: Path, workers: int) -> None:
    for i in range(6):
        read("red/1").save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"\x89PNG nothing")
    (tmp_path / "4.png").unlink()
    items = [Item(f"{i}.png", 0) for i in range(6)]
    dataset = Dataset("files", ("red",), "a {}", items, [], [], read=lambda key: to_rgb(tmp_path / key))
    good, bad = readable(dataset, items, workers)
    assert [item.key for item in good] == ["0.png", "2.png", "3.png", "5.png"]
    assert [one.key for one in bad] == ["1.png", "4.png"] and "does not exist" in bad[1].message


def test_a_broken_image_names_the_way_out_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="Replace it, remove it, or leave out .*--skip-broken") as refused:
        to_rgb(tmp_path / "a.png")
    said = describe_broken([Broken("a.png", str(refused.value))], 3)
    assert REMEDY not in said and said.endswith("a.png is not an image that can be read, or is broken.")  # they are left out already


@pytest.mark.parametrize("workers", [0, 3])
def test_test_batches_leave_them_out(workers: int) -> None:
    dataset, preprocess = damaged("red/12", "blue/15", "grey/19"), Preprocess(32, (0, 0, 0), (1, 1, 1))
    skipped: list[Broken] = []
    found = list(test_batches(dataset, dataset.test, preprocess, 10, workers, skipped=skipped))
    good, bad = readable(dataset, dataset.test)
    whole = list(test_batches(dataset, good, preprocess, 10))
    assert skipped == bad and [len(labels) for _, labels in found] == [10, 10, 9]
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(found, whole, strict=True))
    with pytest.raises(UsageError, match="red/12 is broken"):
        list(test_batches(dataset, dataset.test, preprocess, 10, workers))
    with pytest.raises(UsageError, match="^red/12 is broken. Replace it or remove it.$"):
        list(test_batches(dataset, dataset.test[:1], preprocess, 10, workers, skipped=[]))


def test_each_image_is_decoded_once() -> None:
    reads: list[str] = []
    dataset = dataclasses.replace(colours(), read=lambda key: (reads.append(key), read(key))[1])
    list(test_batches(dataset, dataset.test, Preprocess(32, (0, 0, 0), (1, 1, 1)), 10, skipped=[]))
    assert sorted(reads) == sorted(item.key for item in dataset.test)


def test_the_warning_counts_and_names_the_first() -> None:
    bad = [Broken(str(i), f"{i}.jpg is broken.") for i in range(5)]
    assert describe_broken(bad, 9, of="x") == "5 of 9 images of 'x' left out, missing or broken: 0.jpg is broken; 1.jpg is broken; " \
        "2.jpg is broken; and 2 more."  # fmt: skip
    with pytest.warns(BrokenImageWarning, match=r"1 of 9 images left out, missing or broken: 0.jpg is broken\.$"):
        assert len(warn_broken(bad[:1], 9)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_broken([], 9) == ()


def test_training_goes_on_with_the_others(clip: Clip) -> None:
    draw = base_draw()
    lost = draw.train[1].key
    with pytest.raises(UsageError, match=f"{lost} is broken"):
        train(clip, damaged(lost), draw)
    with pytest.warns(BrokenImageWarning, match=f"1 of 8 images of 'colours' left out, missing or broken: {lost} is broken"):
        fitted = train(clip, damaged(lost), draw, skip_broken=True)
    others = [item for item in draw.train if item.key != lost]
    expected = train(clip, colours().restrict("base"), others)
    assert fitted.history == expected.history and len(fitted.data.warnings) == 1
    red = [item.key for item in draw.train if item.label == 0]
    with pytest.raises(UsageError, match="all 4 training images of class 'red' of 'colours' are missing or broken"):
        train(clip, damaged(*red), draw, skip_broken=True)


@pytest.mark.filterwarnings("ignore::mmrl.engine.BelowZeroShotWarning")
def test_a_run_records_what_was_left_out(clip: Clip) -> None:
    draw = base_draw()
    lost = draw.train[0].key
    training = Training("mmrl", "colours", "base", 4, seed=1, recipe="base-to-novel", overrides=tuple(CONFIG.items()))
    context = Context(Bench("made here", skip_broken=True, draw=draw), clip, datasets={"colours": damaged(lost, "grey/12")})
    job = Job(context.training_key(training), training, tuple((cell, "") for cell in own_tests(training, context)[0]))
    with pytest.warns(BrokenImageWarning):
        record = run(job, context, Place(progress=False, skip_broken=True)).record
    base, novel = record.tests
    assert base.scores.count == 16 and novel.scores.count == 15
    assert record.training and record.training.images == 7
    (trained,) = (text for text in record.training.warnings if "left out" in text)
    (tested,) = (text for text in novel.warnings if "left out" in text)
    assert lost in trained and "1 of 16 images of 'colours'" in tested and "grey/12" in tested


def test_evaluation_says_what_it_left_out(clip: Clip) -> None:
    method = fresh(clip)
    with pytest.warns(BrokenImageWarning, match="red/12"):
        pair = engine.evaluate_dataset(method, damaged("red/12"), seen=True, skip_broken=True, workers=2)
    good = [item for item in colours().test if item.key != "red/12"]
    expected = engine.evaluate_dataset(method, colours(), good, seen=True)
    assert (pair.adapted, pair.zero_shot) == (expected.adapted, expected.zero_shot) and expected.skipped == ()
    assert [one.key for one in pair.skipped] == ["red/12"]


def test_a_published_batch_fits_what_can_be_read() -> None:
    everything, training = base_draw().train, Training("mmrl", "colours", "base", 4, seed=1, recipe="base-to-novel")

    def batch_size(lost: Sequence[Item], **options: Any) -> int:
        datasets = {"colours": damaged(*(item.key for item in lost))}
        return Context(Bench("made here", **options), smallest_clip(), datasets=datasets).prepare(training).config.batch_size

    assert batch_size(everything[:1]) == 4  # the published one
    assert batch_size([item for i, item in enumerate(everything) if i not in (0, 4, 5)], skip_broken=True) == 3


def test_classifier_gives_no_predictions_for_a_broken_image(clip: Clip, tmp_path: Path) -> None:
    for i in range(5):
        read(f"red/{i}").save(tmp_path / f"{i}.png")
    (tmp_path / "0.png").write_bytes(b"nothing")
    (tmp_path / "3.png").write_bytes(b"nothing")
    files = sorted(tmp_path.iterdir())
    classifier = Classifier(fresh(clip), trained=("red", "green"))
    with pytest.warns(BrokenImageWarning, match="2 of 5 images left out"):
        ranked = classifier.rank(files, skip_broken=True)
    assert [len(predictions) for predictions in ranked] == [0, 2, 2, 0, 2]
    assert [ranked[i] for i in (1, 2, 4)] == classifier.rank([files[i] for i in (1, 2, 4)])


def test_pictures_drawn_in_memory_need_no_threads() -> None:
    assert usual_workers(Store) == 0 < usual_workers(read) <= 8
