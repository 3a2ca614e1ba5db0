"""Transforms and batches: shapes, equality with the reference transforms, and that only (seed, epoch, position) decide."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mmrl.data.loader import TrainBatches, test_batches, view_batches
from mmrl.data.preprocess import Preprocess
from mmrl.data.records import Dataset, Item
from mmrl.errors import UsageError

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def dataset() -> Dataset:
    """Eleven pictures of different sizes, the label in the first pixel."""
    items = [Item(str(i), i % 3) for i in range(11)]
    return Dataset("toy", ("a", "b", "c"), "a {}.", items, [], items, read=lambda key: photo(20 + int(key), 24, int(key)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(100, 70), (70, 100), (32, 32), (32, 50), (20, 10), (333, 37), (160, 10)])
def test_test_transform_is_clips(size: tuple[int, int], interpolation: str) -> None:
    reference = transforms.Compose([
        transforms.Resize(32, transforms.InterpolationMode(interpolation)),
        transforms.CenterCrop(32),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    image = photo(*size)
    out = Preprocess(32, MEAN, STD, interpolation).test(image)
    assert out.shape == (3, 32, 32) and out.dtype == torch.float32
    assert torch.equal(out, reference(image))


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = photo(32, 32)
    out = Preprocess(32, (0, 0, 0), (1, 1, 1)).test(image)
    assert (torch.round(out * 255).permute(1, 2, 0).numpy() == np.asarray(image)).all()


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (7, 901), (640, 33), (3, 48)])
def test_of_a_strip_no_more_than_its_middle_is_resized(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    slope = np.linspace(0, 255, max(size)).round().astype(np.uint8)
    image = Image.fromarray(np.tile(slope[:, None] if size[1] > size[0] else slope, (1, size[0]) if size[1] > size[0] else (size[1], 1)))
    whole = transforms.Compose([transforms.Resize(32, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32)])
    expected = np.asarray(whole(image.convert("RGB")), int)
    resize, made = Image.Image.resize, list[tuple[int, int]]()
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *more: made.append(size) or resize(self, size, *more))  # type: ignore[func-returns-value]
    found = Preprocess(32, MEAN, STD).central(image.convert("RGB"))
    assert max(made[0]) <= 17 * 32 and np.abs(found.transpose(1, 2, 0) - expected).max() <= 2


def test_train_transform_is_decided_by_its_seed() -> None:
    preprocess, image = Preprocess(32, MEAN, STD), photo(50, 40)
    first = [preprocess.train(image, seed) for seed in range(20)]
    torch.manual_seed(1)
    random.seed(1)
    again = [preprocess.train(image, seed) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(not torch.equal(first[0], other) for other in first[1:])
    assert first[0].shape == (3, 32, 32) and first[0].dtype == torch.float32


def test_train_transform_is_torchvisions() -> None:
    from torchvision.transforms import functional as F

    for seed in range(30):
        image, generator = photo(50 + seed, 70 - seed, seed), random.Random(seed)
        top, left, height, width = Preprocess(32, MEAN, STD)._crop(image.height, image.width, generator)
        out = F.resized_crop(image, top, left, height, width, [32, 32], F.InterpolationMode.BICUBIC)
        out = F.hflip(out) if generator.random() < 0.5 else out
        assert torch.equal(Preprocess(32, MEAN, STD).train(image, seed), F.normalize(F.to_tensor(out), MEAN, STD))


@pytest.mark.parametrize(("scale", "low", "high"), [((0.5, 1.0), 0.5, 1), ((0.08, 0.3), 0.08, 0.3)])
def test_crops_lie_inside_and_cover_the_share_asked_for(scale: tuple[float, float], low: float, high: float) -> None:
    preprocess = Preprocess(32, MEAN, STD, crop_scale=scale)
    shares, ratios = [], []
    for seed in range(400):
        top, left, height, width = preprocess._crop(60, 80, random.Random(seed))
        assert 0 <= top <= 60 - height and 0 <= left <= 80 - width
        shares.append(height * width / 4800)
        ratios.append(width / height)
    assert low - 0.02 < min(shares) < low + 0.06 and high - 0.1 < max(shares) <= min(high + 0.02, 1)
    assert 0.67 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.5  # of sides rounded to pixels
    for height, width in ((10, 400), (400, 10), (1, 1)):
        top, left, h, w = preprocess._crop(height, width, random.Random(0))
        assert h >= 1 and w >= 1 and 0 <= top <= height - h and 0 <= left <= width - w


def test_flipping_can_be_switched_off() -> None:
    column = np.zeros((16, 16, 3), np.uint8)
    column[:, 8:] = np.arange(120, 240, 15)[:, None]  # brighter to the right
    image = Image.fromarray(column)

    def leans(preprocess: Preprocess, seed: int) -> bool:
        row = preprocess.train(image, seed).mean((0, 1))
        return bool(row[-4:].mean() > row[:4].mean())

    flipping = [leans(Preprocess(16, (0, 0, 0), (1, 1, 1)), seed) for seed in range(60)]
    assert 15 < sum(flipping) < 45
    assert all(leans(Preprocess(16, (0, 0, 0), (1, 1, 1), flip=False), seed) for seed in range(60))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "bicubik"}, "unknown interpolation 'bicubik'. Did you mean 'bicubic'?"),
        ({"size": 0}, "at least 1, not 0"),
        ({"std": (1, 0, 1)}, "std above 0"),
        ({"mean": (0.5,)}, "three values"),
        ({"crop_scale": (0.0, 1.0)}, "0 < low <= high <= 1"),
        ({"crop_scale": (0.9, 0.5)}, "0 < low <= high <= 1"),
        ({"crop_scale": (0.5, 1.1)}, "0 < low <= high <= 1"),
        ({"crop_scale": (float("nan"), 1.0)}, "0 < low <= high <= 1"),
        ({"crop_scale": (0.5,)}, "0 < low <= high <= 1"),
    ],
)
def test_bad_preprocessing_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocess(**{"size": 32, "mean": MEAN, "std": STD, **options})


def batches(dataset: Dataset, **options) -> TrainBatches:  # type: ignore[no-untyped-def]
    return TrainBatches(dataset, dataset.train, Preprocess(16, MEAN, STD), **{"batch_size": 4, "seed": 1, **options})


def same(a, b) -> bool:  # type: ignore[no-untyped-def]
    return len(a) == len(b) and all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def test_epochs_differ_and_repeat(dataset: Dataset) -> None:
    loader = batches(dataset)
    first, second = list(loader.epoch(0)), list(loader.epoch(1))
    assert len(loader) == len(first) == 2 and first[0][0].shape == (4, 3, 16, 16) and first[0][1].dtype == torch.int64
    assert not same(first, second)
    torch.manual_seed(9)
    assert same(list(batches(dataset).epoch(1)), second), "an epoch depends on the ones before"
    assert not same(list(batches(dataset, seed=2).epoch(0)), first)


def test_going_on_in_the_middle_gives_the_same(dataset: Dataset) -> None:
    whole = list(batches(dataset, drop_last=False).epoch(3))
    assert len(batches(dataset, drop_last=False)) == 3 and [len(labels) for _, labels in whole] == [4, 4, 3]
    for start in range(4):
        assert same(list(batches(dataset, drop_last=False).epoch(3, start)), whole[start:])


def test_threads_and_memory_change_nothing(dataset: Dataset) -> None:
    whole = list(batches(dataset).epoch(2))
    assert same(list(batches(dataset, workers=3).epoch(2)), whole)
    assert same(list(batches(dataset, memory_gib=0).epoch(2)), whole)


def test_every_image_once_an_epoch_with_its_label(dataset: Dataset) -> None:
    marked = Dataset("m", dataset.classes, "a {}.", dataset.train, [], [], read=lambda key: Image.new("RGB", (8, 8), (int(key), 0, 0)))
    loader = TrainBatches(marked, marked.train, Preprocess(8, (0, 0, 0), (1, 1, 1)), 4, 5, drop_last=False)
    seen = [(round(x[0, 0, 0].item() * 255), int(y)) for images, labels in loader.epoch(0) for x, y in zip(images, labels, strict=True)]
    assert sorted(seen) == [(i, i % 3) for i in range(11)] and seen != sorted(seen)


def test_images_are_decoded_once(dataset: Dataset) -> None:
    read: list[str] = []
    counted = Dataset("m", dataset.classes, "a {}.", dataset.train, [], [], read=lambda key: (read.append(key), photo(10, 10))[1])
    loader = TrainBatches(counted, counted.train, Preprocess(8, MEAN, STD), 4, 1, drop_last=False)
    for epoch in range(3):
        list(loader.epoch(epoch))
    assert sorted(read) == sorted(item.key for item in counted.train)
    read.clear()
    bounded = TrainBatches(counted, counted.train, Preprocess(8, MEAN, STD), 4, 1, drop_last=False, memory_gib=3 * 400 / 2**30)
    for epoch in range(2):
        list(bounded.epoch(epoch))
    assert len(read) == 11 + 8  # three of the eleven fit


@pytest.mark.parametrize("workers", [0, 3])
def test_test_batches_keep_the_order_and_the_rest(dataset: Dataset, workers: int) -> None:
    preprocess = Preprocess(16, MEAN, STD)
    out = list(test_batches(dataset, dataset.test, preprocess, 4, workers))
    assert [len(labels) for _, labels in out] == [4, 4, 3]
    assert torch.cat([labels for _, labels in out]).tolist() == [item.label for item in dataset.test]
    torch.testing.assert_close(out[2][0][2], preprocess.test(dataset.image(dataset.test[10])), rtol=0, atol=0)


def views_of(dataset: Dataset, **options) -> list:  # type: ignore[type-arg,no-untyped-def]
    out = view_batches(dataset, dataset.train, Preprocess(16, MEAN, STD), **{"batch_size": 4, "seed": 1, "views": 3, **options})
    return list(out)


def test_views_have_every_image_in_order(dataset: Dataset) -> None:
    out = views_of(dataset)
    assert [len(labels) for _, labels in out] == [4, 4, 3] * 3, "a batch spans two views, or images are dropped"
    assert torch.cat([labels for _, labels in out]).tolist() == [item.label for item in dataset.train] * 3
    assert out[0][0].shape == (4, 3, 16, 16) and out[0][0].dtype == torch.float32 and out[0][1].dtype == torch.int64


def test_views_are_decided_by_seed_view_and_position(dataset: Dataset) -> None:
    whole = views_of(dataset)
    torch.manual_seed(9)
    assert same(views_of(dataset), whole) and same(views_of(dataset, workers=2), whole)
    assert same(views_of(dataset, memory_gib=0), whole) and same(views_of(dataset, views=2), whole[:6])
    images = torch.cat([batch for batch, _ in whole]).unflatten(0, (3, 11))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not (images[one] == images[other]).flatten(1).all(1).any(), "two views of an image are the same"
    assert torch.equal(torch.cat([batch for batch, _ in views_of(dataset, batch_size=11)]).unflatten(0, (3, 11)), images)
    assert not same(views_of(dataset, seed=2), whole)


def test_views_decode_each_image_once() -> None:
    read: list[str] = []
    items = [Item(str(i), 0) for i in range(5)]
    counted = Dataset("m", ("a",), "a {}.", items, [], [], read=lambda key: (read.append(key), photo(8, 8))[1])
    stream = view_batches(counted, items, Preprocess(8, MEAN, STD), 2, 1, 3)
    assert not read, "images are read before they are asked for"
    assert len(list(stream)) == 9 and sorted(read) == ["0", "1", "2", "3", "4"]


def test_test_batches_read_only_a_little_ahead(dataset: Dataset) -> None:
    read: list[str] = []
    items = [Item(str(i), 0) for i in range(100)]
    counted = Dataset("m", ("a",), "a {}.", [], [], items, read=lambda key: (read.append(key), photo(8, 8))[1])
    stream = test_batches(counted, items, Preprocess(8, MEAN, STD), 4, workers=2)
    next(stream)
    assert len(read) <= 4 + 2 * 4 + 1
    stream.close()
    assert len(read) < 20


def test_errors_come_out_of_threads(tmp_path: Path, dataset: Dataset) -> None:
    def broken(key: str) -> Image.Image:
        raise UsageError(f"{key} is broken")

    bad = Dataset("m", dataset.classes, "a {}.", dataset.train, [], dataset.test, read=broken)
    with pytest.raises(UsageError, match="0 is broken"):
        list(test_batches(bad, bad.test, Preprocess(8, MEAN, STD), 4, workers=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 12}, "batch size 12 is larger than the 11 training images of 'toy'"), ({"batch_size": 0}, "at least 1, not 0")],
)
def test_bad_batches_are_refused(dataset: Dataset, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        batches(dataset, **options)
    with pytest.raises(UsageError, match="there are no images of 'toy'"):
        test_batches(dataset, [], Preprocess(8, MEAN, STD), 4)
    with pytest.raises(UsageError, match="there are no images of 'toy'"):
        view_batches(dataset, [], Preprocess(8, MEAN, STD), 4, 1, 2)
    with pytest.raises(UsageError, match="views is 0; it must be at least 1"):
        views_of(dataset, views=0)
    assert len(batches(dataset, batch_size=12, drop_last=False)) == 1
