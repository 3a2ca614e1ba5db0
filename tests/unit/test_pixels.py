"""Training images that are decoded once, and cropped, resized and flipped a batch at a time (`pixels=fast`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl import engine
from mmrl.clip import Clip
from mmrl.data import Item, Preprocess, TrainBatches, decoded
from mmrl.data.decoded import Decoded
from mmrl.errors import UsageError
from tests.unit import colours as of_colours
from tests.unit.colours import base_draw, clip_on_one_thread, colours, fresh, read
from tests.unit.test_views import FIT, same

clip = pytest.fixture(scope="module")(clip_on_one_thread)
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.4)
SHAPES = ((40, 50), (64, 30), (33, 90), (90, 90), (32, 32), (32, 60))  # height, width: some are enlarged, some reduced, some neither
ROOM = 8 * 32 * 32  # pixels of the images of a draw


def smooth(height: int, width: int) -> Image.Image:
    """As in a photograph, neighbours are alike."""
    random = np.random.default_rng(height * width)
    coarse = Image.fromarray(random.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_at_once_is_pillows_but_for_rounding(interpolation: str, flip: bool) -> None:
    preprocess = Preprocess(32, MEAN, STD, interpolation, flip=flip)
    images = [smooth(*shape) for shape in SHAPES]
    for first in range(0, 24, 6):
        seeds = range(first, first + len(images))
        one_by_one = preprocess.batch([preprocess.varied(image, seed) for image, seed in zip(images, seeds, strict=True)])
        cuts = [preprocess.cut(image.height, image.width, seed) for image, seed in zip(images, seeds, strict=True)]
        crops = [np.array(image.crop((c.left, c.top, c.left + c.width, c.top + c.height))) for image, c in zip(images, cuts, strict=True)]
        differ = (preprocess.fast_batch(crops, cuts) - one_by_one).abs() * torch.tensor(STD).view(3, 1, 1) * 255
        assert differ.max() < 3.01 and (differ > 0.5).float().mean() < 0.06, "Pillow may take the other direction first"


def test_the_plain_weights_of_pillow() -> None:
    """In float: each pixel's weight is what Pillow makes of an image in which it alone is not zero."""
    from mmrl.data.fast import _weights

    for mode in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST):
        for length in (3, 20, 32, 33, 70):
            found = _weights(torch.tensor([length, 2.0], dtype=torch.float64), 32, 72, mode)[0]
            for at in range(length):
                row = Image.fromarray(np.eye(length, dtype=np.float32)[at : at + 1])
                assert np.abs(np.asarray(row.resize((32, 1), mode))[0] - found[:, at].numpy()).max() < 1e-6
            assert not found[:, length:].any()


def batches(clip: Clip, **more: Any) -> TrainBatches:
    preprocess = engine.features.preprocess_of(clip, flip=True)
    data = more.pop("data", colours().restrict("base"))
    return TrainBatches(data, base_draw().train, preprocess, 3, 4, **more)


def test_the_crops_and_flips_are_those_of_exact_pixels(clip: Clip) -> None:
    exact, fast = batches(clip), batches(clip, fast=True, workers=2)
    for number in range(2):
        for (pixels, labels), (others, same_labels) in zip(exact.epoch(number), fast.epoch(number), strict=True):
            assert torch.equal(labels, same_labels)
            assert torch.corrcoef(torch.stack([pixels.flatten(), others.flatten()]))[0, 1] > 0.999
        assert torch.equal(next(fast.epoch(number, 1))[0], [images for images, _ in fast.epoch(number)][1])
        shown = torch.cat([images for images, _ in fast.epoch(number)])
        assert torch.equal(fast.at(number, [2, 1])[0], fast.at(number, [2, 1])[0]) and (fast.at(number, [4]) - shown[4]).abs().max() < 0.03


def test_fast_pixels_train_and_count_as_another_training(clip: Clip, tmp_path: Path) -> None:
    def trained(out: Path | None = None, **values: Any) -> Any:
        method = fresh(clip)
        result = of_colours.train_on(method, colours(), base_draw(), {**FIT, **values}, out)
        return {key: value.clone() for key, value in method.state_dict().items()}, result.history

    plain, fast = trained(), trained(tmp_path / "x", pixels="fast")
    assert not same(plain, fast) and same(fast, trained(pixels="fast")) and same(plain, trained(pixels="exact"))
    for one, other in zip(plain[1], fast[1], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05)
    assert same(trained(pixels="fast", views=2), trained(pixels="fast", views=2, views_gib=0, views_disk_gib=0))
    with pytest.raises(UsageError, match=r"pixels"):
        engine.fit(fresh(clip), engine.TrainingData.of(clip, colours(), base_draw()), {**FIT}, engine.Place(tmp_path / "x", resume=True))


def test_exact_pixels_are_in_no_key() -> None:
    assert "pixels" not in engine.FitConfig().identity() and engine.FitConfig(pixels="fast").identity()["pixels"] == "fast"


# ---- decoded once ----


def counted(times: Counter[str]) -> Any:
    def reader(key: str) -> Image.Image:
        times[key] += 1
        return read(key)

    return replace(colours().restrict("base"), read=reader)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("memory", [0, 4, 3 * ROOM // 2, 2**30])
def test_what_does_not_fit_in_memory_is_decoded_once_too(clip: Clip, tmp_path: Path, fast: bool, memory: int) -> None:
    times, expected = Counter[str](), [images for number in range(3) for images, _ in batches(clip, fast=fast).epoch(number)]
    loader = batches(clip, fast=fast, data=counted(times), memory_gib=memory / 2**30, disk_gib=1, folder=tmp_path, workers=2)
    shown = [images for number in range(3) for images, _ in loader.epoch(number)]
    assert all(torch.equal(one, other) for one, other in zip(shown, expected, strict=True))
    assert set(times.values()) == {1} and not list(tmp_path.iterdir()), "the file has no name"
    nowhere = batches(clip, fast=fast, data=counted(times), memory_gib=memory / 2**30)
    again = [images for number in range(3) for images, _ in nowhere.epoch(number)]
    assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))


def test_a_disk_without_room_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item("red/1", 0)
    for folder, free in ((tmp_path / "nowhere", 2**30), (tmp_path, 2**62)):
        with monkeypatch.context() as patch:
            patch.setattr(decoded, "FREE", free)
            times = Counter[str]()
            kept = Decoded(counted(times), 0, 1, folder)
            assert np.array_equal(kept.pixels(item), np.asarray(kept.image(item))) and times[item.key] == 2
    small = Decoded(counted(times := Counter[str]()), 0, 3100 / 2**30, tmp_path)  # one image
    for at in (1, 1, 2, 2):
        small.pixels(Item(f"red/{at}", 0))
    assert times == {"red/1": 1, "red/2": 2}
    assert small.image(item).tobytes() == read("red/1").tobytes() and times["red/1"] == 1
