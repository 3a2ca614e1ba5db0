"""`mmrl advise`: the race on training images alone, what it leaves out, and what it says."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import mmrl
from mmrl.cli.main import app
from mmrl.clip import Clip
from mmrl.data import Dataset, Item
from mmrl.engine import advise as room
from mmrl.engine.advise import Advice, Entrant, folds
from mmrl.errors import MmrlError, UsageError
from tests.unit.colours import base_draw, clip_on_one_thread, colours, read

clip = pytest.fixture(scope="module")(clip_on_one_thread)
CLOSED = ("tip-adapter", "linear-probe")


def race(clip: Clip, dataset: Dataset | None = None, **options: Any) -> Advice:
    given = {"methods": CLOSED, "folds": 2} | options
    return mmrl.advise(dataset or colours(), backbone=clip, workers=0, **given)


def test_every_image_is_tested_once_by_a_training_without_it() -> None:
    dataset = colours()
    few = [item for item in dataset.train if item.label != 3 or item.key in ("grey/0",)]  # of grey there is one image
    drawn = replace(base_draw(), train=few, val=dataset.val, classes="all")
    parts = folds(dataset, drawn, 3, seed=0)
    tested = Counter(item for part in parts for item in part.test)
    assert set(tested) == {item for item in few if item.label != 3} and set(tested.values()) == {1}
    for part in parts:
        assert not set(part.train) & set(part.test) and set(part.train) | set(part.test) == set(few) and part.val == dataset.val
        assert {item.label for item in part.train} == {0, 1, 2, 3}
        assert len(part.test) == 8 and not part.rest_tests
    assert folds(dataset, drawn, 3, seed=0)[0].test == parts[0].test != folds(dataset, drawn, 3, seed=1)[0].test


def test_one_image_a_class_cannot_be_left_out() -> None:
    dataset = colours()
    with pytest.raises(UsageError, match="every class of 'colours' has one training image, so none can be left out"):
        folds(dataset, replace(base_draw(), train=[dataset.train[8 * label] for label in range(4)]), 2, seed=0)


def test_the_best_is_named_and_test_images_are_not_looked_at(clip: Clip) -> None:
    asked: list[str] = []
    dataset = replace(colours(), read=lambda key: (asked.append(key), read(key))[1])
    found = race(clip, dataset)
    assert not {item.key for item in dataset.test} & set(asked)
    assert {each.method for each in found.entrants} == {"zero-shot", *CLOSED}
    assert all(each.count == 32 and not each.why_not for each in found.entrants)
    assert found.best == found.entrants[0].method in CLOSED  # of a random CLIP zero-shot knows nothing
    accuracies = [each.accuracy for each in found.entrants]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] > 0.6
    low, high = found.entrants[0].interval
    assert 0 < low < accuracies[0] <= high <= 1
    assert (found.images, found.classes, found.folds) == (32, 4, 2)


def test_methods_that_learn_by_steps_are_raced_too(clip: Clip) -> None:
    found = race(clip, methods=("mmrl",), shots=4, epochs=2, overrides={"rep_tokens": 2, "rep_dim": 8, "batch_size": 4})
    mmrl_ = next(each for each in found.entrants if each.method == "mmrl")
    assert mmrl_.count == 16 and mmrl_.seconds > 0 and mmrl_.memory_gib > 0 and mmrl_.open_vocabulary


def test_what_would_take_too_long_is_left_out(clip: Clip) -> None:
    found = race(clip, minutes=0)
    assert found.best == "zero-shot" and [each.why_not for each in found.entrants[1:]] == ["no time was left"] * 2


def test_a_method_over_the_time_says_how_long_it_needs(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = room.measure_in

    def slow(*args: Any) -> Any:
        return measured(*args).model_copy(update={"train_minutes": 60.0})

    monkeypatch.setattr(room, "measure_in", slow)
    (left_out,) = (each for each in race(clip, methods=("tip-adapter",)).entrants if each.why_not)
    assert left_out.why_not == "it needs about 7200 s more, over the time that is left" and not left_out.count


def test_only_open_vocabularies_where_new_classes_will_come(clip: Clip) -> None:
    found = race(clip, new_classes=True)
    assert found.best == "zero-shot"
    assert {each.method: each.why_not for each in found.entrants[1:]} == dict.fromkeys(CLOSED, "it knows no new classes")


def test_a_method_that_fails_is_named_beside_the_others(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = room.run

    def fails(job: Any, *args: Any) -> Any:
        if job.training and job.training.method == "linear-probe":
            raise MmrlError("no memory left")
        return whole(job, *args)

    monkeypatch.setattr(room, "run", fails)
    (failed,) = (each for each in race(clip).entrants if each.why_not)
    assert (failed.method, failed.why_not) == ("linear-probe", "it failed: no memory left")


def test_equal_ones_go_to_the_quicker_and_others_are_not_told_apart() -> None:
    entrants = (Entrant("a", "A", True, 90, 100, 1.0), Entrant("b", "B", True, 88, 100), Entrant("c", "C", True, 20, 100))
    assert Advice("x", 2, 100, 4, entrants, "a").as_good == ("b",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("tip-adaptor",)}, "unknown method 'tip-adaptor'.*tip-adapter"),
        ({"folds": 1}, "folds is 1; .* give 2 or more"),
        ({"nonsense": 1}, "unknown option.*nonsense"),
    ],
)
def test_mistakes(clip: Clip, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        race(clip, **options)


def test_command_line(tmp_path: Path) -> None:
    for item in (Item(f"{name}/{number}", 0) for name in ("red", "blue") for number in range(4)):
        path = tmp_path / "photos" / f"{item.key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = read(item.key)
        assert isinstance(image, Image.Image)
        image.save(path)
    words = ["advise", str(tmp_path / "photos"), "--methods", "tip-adapter", "--folds", "2", "--workers", "0", "--device", "cpu"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "Tip-Adapter" in shown.output and "8 training images of 2 classes, 2 parts left out in turn" in shown.output
    assert "Take " in shown.output
    assert any(line.split()[:2] == ["zero-shot", "CLIP"] and " to " in line for line in shown.output.splitlines())  # a row is one line
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout.splitlines()[-1])
    assert told["images"] == 8 and {row["method"] for row in told["methods"]} == {"zero-shot", "tip-adapter"}
    assert told["best"] in ("zero-shot", "tip-adapter")
