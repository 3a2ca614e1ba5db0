"""A pool of views: what it shows, that it changes no number, and that neither room nor interruptions do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmrl import engine
from mmrl.clip import Clip, Images
from mmrl.clip.vision import ImageHidden
from mmrl.data import Dataset, TrainBatches
from mmrl.engine import kept
from mmrl.engine.features import preprocess_of
from mmrl.engine.kept import Kept
from mmrl.engine.pool import ViewPool, shown_in_turn
from mmrl.errors import Notice, UsageError
from mmrl.methods import Method
from tests.oracle.pair import relative_error
from tests.unit import colours as of_colours
from tests.unit.colours import base_draw, clip_on_one_thread, colours, fresh, read

FIT: dict[str, Any] = {"epochs": 5, "lr": 1e-2, "batch_size": 3, "seed": 4}  # of 8 images: each epoch drops two, and never the same
METHODS = ("mmrl", "coop", "maple", "provp")  # layer 1 and features; features; layer 0; layer 0 and features
NO_ROOM = {"views_gib": 0, "views_disk_gib": 0}
ALL_EPOCHS = range(FIT["epochs"])

clip = pytest.fixture(scope="module")(clip_on_one_thread)


def made(clip: Clip, name: str) -> Method:
    return fresh(clip, name, **({"n_ctx": 4} if name == "coop" else {}))  # the small text tower reads 16 tokens


def trained(clip: Clip, name: str = "mmrl", out: Path | None = None, **values: Any) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    method = made(clip, name)
    result = of_colours.train_on(method, colours(), base_draw(), {**FIT, **values}, out)
    return {key: value.clone() for key, value in method.state_dict().items()}, result.history


def same(one: tuple[dict[str, Tensor], Any], other: tuple[dict[str, Tensor], Any]) -> bool:
    """To the bit."""
    return one[1] == other[1] and all(torch.equal(value, other[0][key]) for key, value in one[0].items())


def loader(clip: Clip, **more: Any) -> TrainBatches:
    data, config = colours().restrict("base"), engine.FitConfig(**FIT)
    given = {"batch_size": config.batch_size, "seed": config.seed, **more}
    return TrainBatches(given.pop("data", data), given.pop("items", base_draw().train), preprocess_of(clip, flip=data.flip), **given)


# ---- what is shown ----


@pytest.mark.parametrize("name", METHODS)
def test_as_many_views_as_epochs_change_no_bit(clip: Clip, name: str) -> None:
    assert same(trained(clip, name, views=FIT["epochs"]), trained(clip, name))


def test_an_epoch_shows_the_images_of_its_own_order_as_its_views_epoch_does(clip: Clip) -> None:
    batches, config = loader(clip, drop_last=False), engine.FitConfig(**FIT, views=2)
    as_in = {}  # by view and label and item: whole epochs, since none drops anything
    for view in range(2):
        rows = [row for images, _ in batches.epoch(view) for row in images]
        as_in[view] = dict(zip(batches._order(view), rows, strict=True))
    with closing(ViewPool(batches, config, clip, None)) as pool:
        for number in ALL_EPOCHS:
            shown = list(pool.epoch(number))
            order = batches._order(number)
            assert torch.equal(torch.cat([labels for _, labels in shown]), torch.cat([labels for _, labels in batches.epoch(number)]))
            pixels = torch.cat([Images.of(images).pixels for images, _ in shown])
            assert [len(Images.of(images)) for images, _ in shown] == [3, 3, 2]
            assert torch.equal(pixels, torch.stack([as_in[number % 2][item] for item in order]))
            assert [labels.tolist() for _, labels in pool.epoch(number, 2)] == [labels.tolist() for _, labels in shown[2:]]


class WrittenOut:
    """The definition, computed anew for every batch: rows of the batches, and of the rest, of epoch `number mod views`."""

    def __init__(self, batches: TrainBatches, clip: Clip, views: int, layers: range, *, passes: bool = True) -> None:
        self.batches, self.clip, self.views, self.layers, self.passes = batches, clip, views, layers, passes

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor | Images, Tensor]]:
        if number < self.views:
            yield from self.batches.epoch(number, start)
            return
        whole = loader(self.clip, drop_last=False)
        pixels, states, features = dict[int, Tensor](), {layer: dict[int, Tensor]() for layer in self.layers}, dict[int, Tensor]()
        items, view = iter(whole._order(number % self.views)), number % self.views
        for images, _ in whole.epoch(view):
            own = list(islice(items, len(images)))
            pixels |= zip(own, images, strict=True)
            features |= zip(own, self.clip.encode_image(images, normalise=False), strict=True)
            for layer in self.layers:
                states[layer] |= zip(own, self.clip.enter_image(images, layer).main, strict=True)
        for at, (_, labels) in enumerate(self.batches.epoch(number, start), start):
            shown = whole._order(number)[at * whole.batch_size : (at + 1) * whole.batch_size]

            def stacked(rows: dict[int, Tensor], shown: list[int] = shown) -> Tensor:
                return torch.stack([rows[item] for item in shown])

            entering = {layer: ImageHidden(stacked(states[layer])) for layer in self.layers}
            known = {"states": entering, "features": stacked(features)} if self.passes else {}
            yield Images(stacked(pixels), **known), labels  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_equals_the_definition_written_out(clip: Clip, name: str) -> None:
    states, history = trained(clip, name, views=2)

    def on(passes: bool) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        method, data = made(clip, name), colours().restrict("base")
        layers = range(clip.vision.depth)
        result = of_colours.train(
            method, WrittenOut(loader(clip), clip, 2, layers, passes=passes), engine.FitConfig(**FIT), classes=data.classes,
            template=data.template,
        )  # fmt: skip
        return method.state_dict(), result.history

    assert same((states, history), on(passes=True))
    plain = on(passes=False)[0]  # the images themselves, with passes of their own: equal but for rounding
    assert max(relative_error(value, plain[key]) for key, value in states.items()) <= 1e-4
    assert not same((states, history), trained(clip, name)), "views changed nothing, so nothing was compared"


# ---- what is saved ----


def counting(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    passed, embed = list[int](), clip.vision.embed
    monkeypatch.setattr(clip.vision, "embed", lambda pixels: passed.append(len(pixels)) or embed(pixels))
    return passed


@pytest.mark.parametrize("name", METHODS)
def test_every_view_passes_the_frozen_layers_once(clip: Clip, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    passed = counting(clip, monkeypatch)
    trained(clip, name, views=2)
    first, rest = passed[:4], passed[4:]
    assert first == [3, 3, 3, 3], "two batches an epoch"
    assert rest and set(rest) == {2} and len(rest) <= 2 * (2 if name == "provp" else 1), "the two images that each epoch dropped"


def test_images_are_not_decoded_again(clip: Clip) -> None:
    times: dict[str, int] = {}

    def counted(key: str) -> Image.Image:
        times[key] = times.get(key, 0) + 1
        return read(key)

    batches = loader(clip, data=replace(colours().restrict("base"), read=counted), drop_last=False, memory_gib=0)
    with closing(ViewPool(batches, engine.FitConfig(**FIT, views=2), clip, None)) as pool:
        for number in range(4):
            for images, _ in pool.epoch(number):
                clip.encode_image(images)
    assert len(times) == 8 and set(times.values()) == {2}, "once a view"


def test_methods_that_look_at_the_same_batch_share_its_rows(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = counting(clip, monkeypatch)
    alone = loader(clip, drop_last=False)
    with closing(ViewPool(alone, engine.FitConfig(**FIT, views=1), clip, None)) as pool:
        for number in range(3):
            for images, _ in pool.epoch(number):
                assert isinstance(images, Images)
                asked = [clip.enter_image(images, layer).main for layer in (1, 0, 1)], clip.encode_image(images, normalise=False)
                assert asked[0][0] is asked[0][2]
                if number == 0:
                    assert torch.equal(asked[1], clip.encode_image(images.pixels, normalise=False))
    assert sum(passed) == 3 * 8, "one pass from the pixels for each layer asked for out of order, one for the comparison"


# ---- neither room, nor interruptions ----


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_room_changes_no_bit(clip: Clip, name: str, precision: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    common = {"views": 2, "precision": precision}
    whole = trained(clip, name, **common)
    assert not [w for w in recwarn if w.category is Notice]
    assert same(whole, trained(clip, name, out=tmp_path / "filed", **common, views_gib=0))
    assert not [w for w in recwarn if w.category is Notice]
    some = {"views_gib": 5000 / 2**30, "views_disk_gib": 0}  # a few rows of states, or all features
    assert same(whole, trained(clip, name, **common, **some))
    told = [str(w.message) for w in recwarn if w.category is Notice]
    assert len(told) == (name != "coop") and all("views=2: what the frozen layers make of 8 images takes 0.0 GiB" in t for t in told)
    with pytest.warns(Notice, match="each image with all 3 of its batch"):
        assert same(whole, trained(clip, name, **common, **NO_ROOM))


def test_bf16_rows_are_what_autocast_made(clip: Clip) -> None:
    with closing(ViewPool(loader(clip), engine.FitConfig(**FIT, views=3), clip, None)) as pool:
        kinds = []
        for number in range(2):
            for images, _ in pool.epoch(number):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    kinds.append(clip.encode_image(images, normalise=False).dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = pool.rows(0, [0, 4], None)
        high = pool.rows(0, [0, 4], None)
    assert set(kinds) == {torch.bfloat16} and low.dtype == torch.bfloat16 and high.dtype == torch.float32
    assert 0 < relative_error(low.float(), high) < 0.05


class StopsAt:
    """The batches, until the process is interrupted before it takes number `until`."""

    def __init__(self, batches: TrainBatches, until: int) -> None:
        self.batches, self.until, self.taken = batches, until, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def _counted(self, of: Iterator[Any], counts: bool) -> Iterator[Any]:
        for each in of:
            if counts and self.taken == self.until:
                raise KeyboardInterrupt
            self.taken += counts
            yield each

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        return self.batches.epoch(number, start)

    def again(self, number: int, view: int, start: int = 0) -> Iterator[Any]:
        return self._counted(self.batches.again(number, view, start), True)


@pytest.mark.parametrize(("name", "precision"), [("mmrl", "fp32"), ("coop", "bf16"), ("provp", "bf16")])
@pytest.mark.parametrize("until", [1, 3, 5, 8])
def test_resumed_to_the_same_bits(clip: Clip, tmp_path: Path, name: str, precision: str, until: int) -> None:
    values = {"views": 2, "precision": precision, "checkpoint_every": 1}
    out, config, data = tmp_path / "out", engine.FitConfig(**FIT, **values), colours().restrict("base")

    def on(batches: Any, resume: bool) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        method = made(clip, name)
        result = of_colours.train(method, batches, config, out, resume=resume, classes=data.classes, template=data.template)
        return method.state_dict(), result.history

    with pytest.raises(KeyboardInterrupt):
        on(StopsAt(loader(clip), until), False)
    assert same(on(loader(clip), True), trained(clip, name, **values))


# ---- errors ----


def test_batches_that_cannot_be_shown_again_are_refused(clip: Clip) -> None:
    with pytest.raises(UsageError, match="views is 1, but a Same cannot show an epoch again"):
        of_colours.train(fresh(clip), of_colours.noise(2), engine.FitConfig(epochs=2, views=1))
    of_colours.train(fresh(clip), of_colours.noise(2), engine.FitConfig(epochs=2, views=2))


def test_an_unreadable_image_is_an_error_before_its_step(clip: Clip) -> None:
    """One that the first epoch drops, and so does not read."""
    broken = loader(clip).items[loader(clip)._order(0)[-1]].key

    def breaks(key: str) -> Image.Image:
        if key == broken:
            raise UsageError(f"{key} is cut short")
        return read(key)

    data: Dataset = replace(colours().restrict("base"), read=breaks)
    with closing(ViewPool(loader(clip, data=data), engine.FitConfig(**FIT, views=1), clip, None)) as pool:
        batches, steps = (images for number in ALL_EPOCHS for images, _ in pool.epoch(number)), 0
        while True:
            try:
                images = next(batches)
            except UsageError as error:
                assert str(error) == f"{broken} is cut short" and steps >= 2
                return
            clip.encode_image(images)
            steps += 1


def test_few_views_are_used_by_a_training_by_steps(clip: Clip) -> None:
    with shown_in_turn(loader(clip), engine.FitConfig(iterations=5, views=2), clip, None) as batches:
        assert isinstance(batches, ViewPool) and len(batches) == 2, "5 steps of 2 an epoch are 3 epochs"
    with shown_in_turn(loader(clip), engine.FitConfig(iterations=4, views=2), clip, None) as batches:
        assert isinstance(batches, TrainBatches)


# ---- the keeping ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_kept_in_memory_then_in_a_file_then_not(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(1, 2)
    size = rows[0].nbytes
    with closing(Kept(2 * size, 3 * size, tmp_path)) as there:
        assert [there.put(at, row) for at, row in enumerate(rows)] == [True] * 5 + [False]
        assert there.put(4, rows[0]), "it is there, and stays as it is"
        for at, row in enumerate(rows[:5]):
            found = there.get(at)
            assert at in there and found is not None and torch.equal(found, row)
        assert there.get(5) is None and 5 not in there
        assert not list(tmp_path.iterdir()), "the file has no name"
    assert there.get(0) is None and there.get(4) is None


def test_a_copy_is_kept(tmp_path: Path) -> None:
    value = torch.ones(4)
    with closing(Kept(100)) as there:
        there.put("x", value)
        value.zero_()
        found = there.get("x")
        assert found is not None and found.tolist() == [1] * 4


@pytest.mark.parametrize("fault", ["full", "no folder", "breaks"])
def test_a_disk_that_has_no_room_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    folder = tmp_path / "nowhere" if fault == "no folder" else tmp_path
    if fault == "full":
        monkeypatch.setattr(kept, "FREE", 2**62)
    with closing(Kept(0, 2**20, folder)) as there:
        if fault == "breaks":
            assert there.put("first", torch.ones(4))
            assert there._file is not None
            there._file.close()
            monkeypatch.setattr(there, "_file", Broken())
            assert there.get("first") is None and "first" not in there, "it cannot be read any more"
        assert not there.put("x", torch.ones(4)) and there.get("x") is None


class Broken:
    """A file on a disk that fails."""

    def _fail(self, *_: object) -> int:
        raise OSError(5, "Input/output error")

    seek = readinto = write = _fail
    close: Callable[[], None] = staticmethod(lambda: None)
