"""Photos of one's own: every one of them trains or tests, whoever says which."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl import api
from mmrl.clip import load_clip
from mmrl.data import BrokenImageWarning, Dataset, Item, draw_shots, load_dataset, read_folder
from mmrl.engine import UntestedWarning
from mmrl.errors import Notice, UsageError

QUICK = {"epochs": 1, "warmup_epochs": 0, "batch_size": 2, "rep_dim": 8, "rep_tokens": 1}


def photos(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        Image.fromarray(np.full((20, 24, 3), i, np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    for name in ("cat", "dog", "red_fox"):
        photos(tmp_path / "animals" / name, 16)
    return tmp_path / "animals"


tiny = functools.cache(load_clip)


def train(data: Path | Dataset, **options: object) -> api.RunResult:
    return api.train(data, backbone=tiny("tiny", device="cpu"), device="cpu", overrides=QUICK, progress=False, **options)  # type: ignore[arg-type]


def test_all_images_that_are_not_drawn_test(animals: Path) -> None:
    dataset = read_folder(animals)
    draw = draw_shots(dataset, 4, 1)
    tested = dataset.held_out(draw.train)
    drawn, rest = {item.key for item in draw.train}, {item.key for item in tested.test}
    assert len(drawn) == 12 and drawn | rest == {item.key for item in dataset.train} and not drawn & rest
    assert tested.restrict("novel").test == [Item(item.key, 0) for item in tested.test if item.label == 2]
    assert tested.held_out(()) is tested  # it says now which images test


def test_sixteen_photos_a_class_give_sixteen_shots(animals: Path) -> None:
    photos(animals / "dog", 4, first=16)
    with pytest.warns(UntestedWarning, match="no image of 'animals' is left to test on of cat, red fox: fewer shots"):
        record = train(animals, shots=16).record
    assert record.metrics.all is not None and record.metrics.all.count == 4


def test_all_photos_may_train(animals: Path) -> None:
    with pytest.warns(UntestedWarning, match="no image of 'animals' is left to test on of cat, dog, red fox"):
        result = train(animals, shots=0)
    assert result.record.metrics.all is None and result.record.zero_shot is not None and result.record.zero_shot.all is None
    assert any("is left to test on" in text for text in result.record.warnings)


def test_base_classes_train_and_all_others_test(animals: Path) -> None:
    with pytest.warns(Notice, match="^3 classes, 48 photos: 8 to train, 40 held out$"):
        record = train(animals, shots=4, classes="base").record
    assert not any("is left to test on" in text for text in record.warnings)
    assert record.metrics.base is not None and record.metrics.novel is not None
    assert (record.metrics.base.count, record.metrics.novel.count) == (24, 16)


def test_a_share_is_set_apart_by_the_name_of_the_class_alone(animals: Path, tmp_path: Path) -> None:
    dataset = load_dataset(animals, test_share=0.25)
    assert not dataset.rest_tests and len(dataset.train) == 36 and len(dataset.test) == 12
    photos(tmp_path / "other" / "cat", 16)
    alone = load_dataset(tmp_path / "other", test_share=0.25)
    assert [item.key for item in alone.test] == [item.key for item in dataset.test if item.label == 0]
    for count, tested in ((1, 0), (2, 1), (3, 1), (10, 2)):
        photos(tmp_path / str(count) / "cat", count)
        assert len(load_dataset(tmp_path / str(count), test_share=0.25).test) == tested
    assert train(animals, shots=2, holdout=0.25).record.metrics.all.count == 12  # type: ignore[union-attr]


def test_a_folder_may_test(animals: Path, tmp_path: Path) -> None:
    photos(tmp_path / "new" / "Red Fox", 3)
    photos(tmp_path / "new" / "dog" / "indoors", 2)
    dataset = load_dataset(animals, test=tmp_path / "new")
    assert [(item.key, item.label) for item in dataset.test] == [
        *((f"../new/Red Fox/{i}.png", 2) for i in range(3)), *((f"../new/dog/indoors/{i}.png", 1) for i in range(2))
    ]  # fmt: skip
    assert dataset.image(dataset.test[1]).getpixel((0, 0)) == (1, 1, 1) and len(dataset.train) == 48
    record = train(animals, shots=2, holdout=tmp_path / "new").record
    assert record.metrics.all is not None and record.metrics.all.count == 5
    lines = ["path,label", *(f"animals/cat/{i}.png,cat" for i in range(4)), "animals/dog/1.png,dog"]
    (tmp_path / "animals.csv").write_text("\n".join(lines))
    photos(tmp_path / "cats" / "CAT", 2)
    listed = load_dataset(tmp_path / "animals.csv", test=tmp_path / "cats")
    assert [item.key for item in listed.test] == ["cats/CAT/0.png", "cats/CAT/1.png"]
    assert listed.image(listed.test[1]).getpixel((0, 0)) == (1, 1, 1)


def test_train_alone_is_a_split_folder_too(tmp_path: Path) -> None:
    photos(tmp_path / "train" / "cat", 3)
    dataset = read_folder(tmp_path)
    assert dataset.rest_tests and dataset.classes == ("cat",) and len(dataset.train) == 3


def test_what_does_not_go_together_is_refused(animals: Path, tmp_path: Path) -> None:
    photos(tmp_path / "strange" / "wolf", 1)
    photos(tmp_path / "whole" / "train" / "cat", 2)
    photos(tmp_path / "whole" / "test" / "cat", 1)
    cases = {
        "test and test_share are both given": (animals, {"test": tmp_path, "test_share": 0.3}),
        "class 'wolf', which 'animals' does not have. Its classes: cat, dog, red fox": (animals, {"test": tmp_path / "strange"}),
        "none does not exist": (animals, {"test": tmp_path / "none"}),
        "is both in .*animals and in the test folder": (animals, {"test": animals}),
        "'whole' has its own test images and cannot be tested on .* as well": (tmp_path / "whole", {"test": animals}),
        "'whole' has its own test images, so no share": (tmp_path / "whole", {"test_share": 0.3}),
        "test_share is 1; it must be above 0 and below 1": (animals, {"test_share": 1}),
        "test_share is nan": (animals, {"test_share": float("nan")}),
        "'mini:digits' has its own test images": ("mini:digits", {"test_share": 0.3}),
    }
    for message, (data, options) in cases.items():
        with pytest.raises(UsageError, match=message):
            load_dataset(data, **options)  # type: ignore[arg-type]
    for share in (1, -0.1, float("nan"), True):
        with pytest.raises(UsageError, match=f"holdout is {share}; it must be 0 .everything trains, .* test images"):
            train(animals, holdout=share)
    with pytest.raises(UsageError, match="'whole' has its own test images, so no share"):
        train(tmp_path / "whole", holdout=0.3)


def test_nothing_may_be_held_out(animals: Path) -> None:
    result = train(animals, holdout=0)
    assert result.record.trained.images == 48 and result.record.trained.shots == 0 and not result.record.tests
    assert not result.record.warnings  # it was asked for
    assert train(animals, holdout=0, shots=4).record.trained.images == 12


def test_with_images_held_out_all_others_train(animals: Path) -> None:
    record = train(animals, holdout=0.25).record
    assert record.trained.images == 36 and record.metrics.all is not None and record.metrics.all.count == 12
    record = train(read_folder(animals), holdout=0.25, shots=3).record
    assert record.trained.images == 9 and record.metrics.all is not None and record.metrics.all.count == 12


def test_the_toy_backbone_is_named_as_what_it_is(animals: Path) -> None:
    with pytest.warns(Notice, match="'tiny' is used, which is for trying .* 'ViT-B-16-quickgelu/openai': it is downloaded once"):
        classifier = api.fit(animals, shots=2, progress=False, **QUICK)
    assert classifier.trained_on == "animals" and classifier.method.clip.name == "tiny"


def test_a_photo_that_ends_a_training_leaves_the_folder_to_the_corrected_command(animals: Path, tmp_path: Path) -> None:
    for number in range(8, 16):
        (animals / "cat" / f"{number}.png").write_text("no image")
    out = tmp_path / "run"
    with pytest.raises(UsageError, match="is not an image that can be read, or is broken"):
        train(animals, shots=16, out=out)
    assert not (out / "training_state.bin").exists()
    with pytest.warns(UntestedWarning), pytest.warns(BrokenImageWarning, match="8 of 48 images"):
        assert train(animals, shots=16, out=out, skip_broken=True).record.training is not None


def test_photos_that_cannot_calibrate_are_named_and_not_counted(animals: Path) -> None:
    apart = train(animals, shots=8).trust
    assert apart is not None and apart.images == 12 == len(apart.keys)
    lost = next(key for key in apart.keys if key.startswith("dog"))
    (animals / lost).write_text("no image")
    with pytest.warns(BrokenImageWarning, match="1 of 12 images of 'animals' left out"):
        result = train(animals, shots=8, skip_broken=True)
    assert result.trust is not None and set(result.trust.keys) == {*apart.keys} - {lost} and result.trust.images == 11
    assert result.record.training is not None and any(lost in text for text in result.record.training.warnings)
