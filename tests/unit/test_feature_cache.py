"""Features of frozen images and decoded pixels that are kept: the same numbers to the bit, and no second pass."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmrl import engine, methods
from mmrl.clip import Clip
from mmrl.data import BrokenImageWarning, Dataset, load_dataset, read_folder
from mmrl.engine import Bench, Context
from mmrl.engine.features import FeatureStore, shown
from mmrl.errors import Notice, UsageError
from mmrl.protocols import base_to_novel
from mmrl.rows import SPARE
from tests.unit.colours import clip_on_one_thread, colours, fresh, smallest_clip, train_on
from tests.unit.grids import compute, jobs_of, losses, photos, planned, scores

clip = pytest.fixture(scope="module")(clip_on_one_thread)
SHORT: dict[str, dict[str, Any]] = {
    "mmrl": {"first_layer": 2},  # so that there is one below
    "coop": {"n_ctx": 2},
    "cocoop": {"n_ctx": 2, "ctx_init": ""},
    "maple": {"n_ctx": 2, "ctx_init": "", "depth": 2},
}
PER_CLASS, BATCH = 5, 3  # batches that end within a class, and an incomplete last one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", per_class=PER_CLASS)


def data_of(folder: Path) -> Dataset:
    dataset = read_folder(folder)
    return dataset.held_out(())


class Counted:
    """How many images were read and passed the tower."""

    def __init__(self, dataset: Dataset, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = self.passed = 0
        encode, load = clip.encode_image, dataset.read

        class Reader:
            stamp = staticmethod(load.stamp)  # type: ignore[attr-defined]

            def __call__(inner, key: str) -> Image.Image:
                self.read += 1
                return load(key)

        def encoded(images: Tensor, **more: Any) -> Tensor:
            self.passed += len(images)
            return encode(images, **more)

        monkeypatch.setattr(clip, "encode_image", encoded)
        self.dataset = replace(dataset, read=Reader())

    def since(self) -> tuple[int, int]:
        told, self.read, self.passed = (self.read, self.passed), 0, 0
        return told


def evaluate(method: methods.Method, dataset: Dataset, store: FeatureStore | None = None, **more: Any) -> engine.Evaluation:
    return engine.evaluate_dataset(method, dataset, seen=True, batch_size=BATCH, store=store, **more)


def make(clip: Clip, name: str) -> methods.Method:
    return fresh(clip, name, **SHORT.get(name, {}))


def trained(clip: Clip, name: str, dataset: Dataset) -> methods.Method:
    method = make(clip, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        if name != "zero-shot":
            train_on(method, dataset, dataset.train, {"epochs": 2, "batch_size": 4})
    return method


def features_of(clip: Clip, dataset: Dataset, store: FeatureStore | None, **more: Any) -> Tensor:
    batches = shown(clip, dataset, dataset.test, **{"batch_size": BATCH, "images": False, "features": True, "store": store} | more)
    return torch.cat([batch.features for batch in batches if batch.features is not None])


# ---- the same numbers ----


@pytest.mark.parametrize("name", ["zero-shot", "coop", "cocoop", "tip-adapter", "tip-adapter-f", "linear-probe", "mmrl", "maple"])
def test_scores_are_the_same_to_the_bit(clip: Clip, folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a store, when it is filled, and from it; and then nothing is passed, or even read, again."""
    method, store = trained(clip, name, data_of(folder)), FeatureStore(tmp_path / "kept", 1)
    counted = Counted(data_of(folder), clip, monkeypatch)
    count = len(counted.dataset.test)
    plain = evaluate(method, counted.dataset)
    assert counted.since() == (count, count)
    assert evaluate(method, counted.dataset, store) == plain
    assert counted.since() == (count, count)
    assert evaluate(method, counted.dataset, FeatureStore(tmp_path / "kept", 1)) == plain
    assert counted.since() == (0, 0)
    assert evaluate(method, counted.dataset, store, beside_zero_shot=False) == plain._replace(zero_shot=None)
    assert method.frozen_images == (name not in ("mmrl", "maple"))
    kinds = {path.name.split("-")[0] for path in (tmp_path / "kept").glob("*.rows")}
    assert kinds == ({"features"} if method.frozen_images else {"features", "spare"})


def test_layers_below_the_first_that_is_edited_run_once(
    clip: Clip, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all methods that come later, whatever those in between asked for; and nothing is decoded for them."""
    dataset, kept = data_of(folder), tmp_path / "kept"
    pair = {name: make(clip, name) for name in ("maple", "mmrl")}
    plain = {name: evaluate(method, dataset) for name, method in pair.items()}
    counted, embedded = Counted(dataset, clip, monkeypatch), list[int]()
    embed = clip.vision.embed
    monkeypatch.setattr(clip.vision, "embed", lambda pixels: embedded.append(len(pixels)) or embed(pixels))
    for name, images, read in (("maple", 20, 20), ("mmrl", 20, 0), ("mmrl", 0, 0), ("maple", 20, 0), ("mmrl", 0, 0)):
        assert evaluate(pair[name], counted.dataset, FeatureStore(kept, 1), beside_zero_shot=False) == plain[name]._replace(zero_shot=None)
        assert sum(embedded) == images and counted.since()[0] == read, name
        embedded.clear()
    (states,) = kept.glob(f"{SPARE}states-*")
    for path in kept.glob(f"{SPARE}pixels-*"):
        path.unlink()
    assert evaluate(pair["maple"], counted.dataset, FeatureStore(kept, 1)) == plain["maple"], "decoded where they are needed"
    states.write_bytes(states.read_bytes()[:-1] + b"?")  # in the last row
    assert evaluate(pair["mmrl"], counted.dataset, FeatureStore(kept, 1)) == plain["mmrl"]
    assert not states.exists()
    assert evaluate(pair["mmrl"], counted.dataset, FeatureStore(kept, 1)) == plain["mmrl"] and states.exists()


def test_states_of_a_pass_that_left_images_out_are_not_kept(clip: Clip, folder: Path, tmp_path: Path) -> None:
    dataset, kept = data_of(folder), tmp_path / "kept"
    (folder / dataset.test[7].key).write_bytes(b"broken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrokenImageWarning)
        found = [evaluate(make(clip, "mmrl"), dataset, FeatureStore(kept, 1), skip_broken=True) for _ in range(2)]
    assert found[0] == found[1] and not list(kept.glob(f"{SPARE}states-*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_are_the_same_to_the_bit(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    clip, dataset = smallest_clip(), data_of(folder)
    clip.model.to(dtype)
    with torch.no_grad():
        if dtype == torch.float64:
            clip.vision.embed, embed = lambda images: embed(images.double()), clip.vision.embed  # type: ignore[method-assign]
        plain = features_of(clip, dataset, None)
        for _ in range(2):
            again = features_of(clip, dataset, FeatureStore(tmp_path, 1))
            assert again.dtype == dtype and torch.equal(again, plain)


def test_images_and_features_in_one_pass(clip: Clip, folder: Path, tmp_path: Path) -> None:
    dataset, store = data_of(folder), FeatureStore(tmp_path / "kept", 1)
    features = features_of(clip, dataset, store)
    plain = list(shown(clip, dataset, dataset.test, batch_size=BATCH, images=True, features=True))
    for _ in range(2):
        both = list(shown(clip, dataset, dataset.test, batch_size=BATCH, images=True, features=True, store=store))
        assert torch.equal(torch.cat([batch.features for batch in both if batch.features is not None]), features)
        for one, other in zip(plain, both, strict=True):
            assert one.images and other.images and torch.equal(one.images.pixels, other.images.pixels)
            assert torch.equal(one.labels, other.labels)


def test_features_to_train_on_are_kept(clip: Clip, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views that were augmented with one seed and one crop; each by itself."""
    dataset = read_folder(folder)
    counted = Counted(dataset, clip, monkeypatch)
    items = counted.dataset.train[:7]
    found: list[Tensor] = []
    for seed, scale in ((1, (0.5, 1.0)), (1, (0.5, 1.0)), (2, (0.5, 1.0)), (1, (0.2, 1.0))):
        config = engine.FitConfig(seed=seed, crop_scale=scale, batch_size=2)
        plain, kept = (
            engine.TrainingData.of(clip, counted.dataset, items, config, store=store).features
            for store in (None, FeatureStore(tmp_path / "kept", 1))
        )
        assert plain is not None and kept is not None
        for views in (0, 3):
            expected = plain("train", views)
            counted.since()
            features, labels = kept("train", views)
            assert torch.equal(features, expected[0]) and torch.equal(labels, expected[1]) and features.shape[0] == max(1, views)
            found.append(features)
            passed = counted.since()[1]
            assert passed == (0 if len(found) in (3, 4, 5, 7) else 7 * max(1, views))
    assert not torch.equal(found[1], found[5]) and not torch.equal(found[1], found[7]) and torch.equal(found[0], found[4])


# ---- what decides them ----


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.rows")}


@pytest.mark.parametrize("change", ["nothing", "batch size", "backbone", "threads", "order", "transform", "file", "touched", "decoder"])
def test_everything_that_decides_is_in_the_key(clip: Clip, folder: Path, tmp_path: Path, change: str) -> None:
    dataset, store, size, other, threads = data_of(folder), FeatureStore(tmp_path / "kept", 1), BATCH, clip, torch.get_num_threads()
    before = features_of(clip, dataset, store)
    path = folder / dataset.test[0].key
    if change == "batch size":
        size = 4
    elif change == "backbone":
        other = smallest_clip(seed=1)
    elif change == "order":
        dataset = replace(dataset, test=dataset.test[::-1])
    elif change == "transform":
        other = smallest_clip()
        other.mean = (0.1, 0.2, 0.3)
    elif change == "file":
        Image.new("RGB", (64, 64), "yellow").save(path)
    elif change == "touched":
        os.utime(path, ns=(0, 0))
    elif change == "decoder":
        dataset = replace(dataset, read=type(dataset.read)(folder, turned))  # type: ignore[call-arg]
    torch.set_num_threads(threads + (change == "threads"))
    try:
        after = features_of(other, dataset, FeatureStore(tmp_path / "kept", 1), batch_size=size)
    finally:
        torch.set_num_threads(threads)
    assert len(names_in(tmp_path / "kept")) == 1 + (change != "nothing")
    if change in ("nothing", "touched", "batch size", "threads"):
        assert torch.allclose(before, after, atol=1e-5)
    else:
        assert not torch.allclose(before, after, atol=1e-5)


def turned(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB").transpose(Image.Transpose.ROTATE_90)


def test_nothing_is_kept_of_images_that_nobody_vouches_for(clip: Clip, tmp_path: Path) -> None:
    """A function of a user's own does not say when its images change; nor is anything kept in half precision around a test, or with 0."""
    store = FeatureStore(tmp_path / "kept", 1)
    assert torch.equal(features_of(clip, colours(), store), features_of(clip, colours(), None))
    with torch.autocast("cpu", torch.bfloat16):
        features_of(clip, data_of(photos(tmp_path / "photos", per_class=2)), store)
    features_of(clip, data_of(tmp_path / "photos"), FeatureStore(tmp_path / "kept", 0))
    assert not (tmp_path / "kept").exists()


def test_every_own_reader_vouches(tmp_path: Path) -> None:
    mini = load_dataset("mini:digits")
    assert mini.stamp(mini.test) != mini.stamp(mini.train) and mini.stamp(mini.test) is not None
    dataset = data_of(photos(tmp_path / "photos", per_class=2))
    stamp = dataset.stamp(dataset.test)
    assert stamp == data_of(tmp_path / "photos").stamp(dataset.test)
    (tmp_path / "photos" / dataset.test[0].key).unlink()
    assert dataset.stamp(dataset.test) != stamp
    assert colours().stamp(colours().test) is None


# ---- broken images ----


@pytest.mark.parametrize("name", ["coop", "mmrl"])
def test_broken_images_are_the_same_with_and_without(clip: Clip, folder: Path, tmp_path: Path, name: str) -> None:
    dataset, method = data_of(folder), make(clip, name)
    whole = (folder / dataset.test[4].key).read_bytes()
    (folder / dataset.test[4].key).write_bytes(whole[:60])
    (folder / dataset.test[9].key).unlink()

    def found(store: FeatureStore | None) -> engine.Evaluation:
        with pytest.warns(BrokenImageWarning, match="2 of 20 images"):
            return evaluate(method, dataset, store, skip_broken=True)

    plain = found(None)
    assert [found(FeatureStore(tmp_path / "kept", 1)) for _ in range(3)] == [plain] * 3
    for _ in range(2):
        with pytest.raises(UsageError) as strict:
            evaluate(method, dataset)
        with pytest.raises(UsageError) as kept:
            evaluate(method, dataset, FeatureStore(tmp_path / "kept", 1))
        assert str(kept.value) == str(strict.value) and dataset.test[4].key in str(kept.value)
    (folder / dataset.test[4].key).write_bytes(whole)
    with pytest.warns(BrokenImageWarning, match="1 of 20 images"):
        repaired = evaluate(method, dataset, FeatureStore(tmp_path / "kept", 1), skip_broken=True)
    with pytest.warns(BrokenImageWarning, match="1 of 20 images"):
        assert repaired == evaluate(method, dataset, skip_broken=True) != plain


def test_an_image_that_can_be_read_again_is_not_left_out(clip: Clip, folder: Path, tmp_path: Path) -> None:
    """As when a disk answered late: the same files, of which one could not be read for a while."""
    dataset, key = data_of(folder), data_of(folder).test[4].key

    class Late:
        stamp = staticmethod(dataset.read.stamp)  # type: ignore[attr-defined]

        def __call__(self, wanted: str) -> Image.Image:
            if wanted == key:
                raise UsageError("late")
            return dataset.read(wanted)

    store = FeatureStore(tmp_path / "kept", 1)
    for name in ("coop", "mmrl"):
        with pytest.warns(BrokenImageWarning, match="1 of 20 images"):
            evaluate(make(clip, name), replace(dataset, read=Late()), store, skip_broken=True)
        assert evaluate(make(clip, name), dataset, store, skip_broken=True) == evaluate(make(clip, name), dataset)


# ---- a grid ----


def test_a_grid_has_the_same_numbers(root: Path, tmp_path: Path) -> None:
    cells = [*planned(root), *base_to_novel(("tip-adapter", "linear-probe"), (str(root),), (1,), shots=(2,))]
    found = {}
    for gib in (0.0, 1.0):
        store = tmp_path / f"{gib}" / "features"
        context = Context(Bench("smallest", features=store if gib else None, cache_gib=gib, beside_zero_shot=True), smallest_clip())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            outcome, _ = compute(jobs_of(context, cells), context, tmp_path / f"{gib}")
        assert not outcome.failed and not outcome.left
        found[gib] = scores(tmp_path / f"{gib}"), losses(tmp_path / f"{gib}")
        assert store.exists() == bool(gib)
    assert found[0.0] == found[1.0] and len(found[0.0][0]) > 4
    assert len(names_in(tmp_path / "1.0" / "features")) >= 4  # both halves, their pixels, and what a closed form is made of


def test_the_command_keeps_them(cli: Any, root: Path, tmp_path: Path) -> None:
    words = ["bench", "base-to-novel", "--datasets", root, "--methods", "zero-shot", "--seeds", 1, "--backbone", "tiny", "--workers", 0]
    for gib, kept in (("0", False), ("1", True)):
        code, _, err = cli(*words, "--out", tmp_path / gib, "--cache-gib", gib)
        assert code == 0, err
        assert (tmp_path / gib / "features").exists() is kept
    assert scores(tmp_path / "0") == scores(tmp_path / "1")
