"""Rows that take turns, and the batches that they have in common."""

from __future__ import annotations

import pytest
import torch

from mmrl.clip import Clip, Images
from mmrl.engine.batches import OnePass
from mmrl.engine.turns import Turns, take_turns
from tests.unit.colours import Same, clip_on_one_thread, noise

CPU = torch.device("cpu")
clip = pytest.fixture(scope="module")(clip_on_one_thread)


def counting(name: str, first: int, last: int, said: list[tuple[str, int, float]]) -> Turns[None]:
    torch.manual_seed(len(name))
    for number in range(first, last):
        yield 0, number
        said.append((name, number, torch.rand(()).item()))


def test_the_least_far_goes_on_with_its_own_random_numbers() -> None:
    apart, said = list[tuple[str, int, float]](), list[tuple[str, int, float]]()
    lengths = {"a": (0, 3), "bb": (0, 2), "ccc": (1, 3)}
    for name, (first, last) in lengths.items():
        take_turns([counting(name, first, last, apart)], CPU)
    take_turns((counting(name, first, last, said) for name, (first, last) in lengths.items()), CPU)
    assert sorted(said) == sorted(apart) and [number for _, number, _ in said] == [0, 0, 1, 1, 1, 2, 2]


def test_what_ends_one_is_raised_in_all() -> None:
    ended = list[str]()

    def row(name: str, last: int) -> Turns[None]:
        try:
            for number in range(last):
                yield (number,)
            raise OSError("full")
        except OSError as error:
            ended.append(f"{name} {error}")
            raise

    with pytest.raises(OSError, match="full"):
        take_turns([row("short", 1), row("long", 9)], CPU)
    assert ended == ["short full", "long full"]


def test_a_batch_in_common_is_made_once_and_again_for_who_is_late() -> None:
    source = Same(noise(4))
    common = OnePass(source, CPU, keep=2)
    first, second, late = common.epoch(0), common.epoch(0), common.epoch(0)
    for _ in range(2):
        (images, labels), (again, _) = next(first), next(second)
        assert images is again and labels.shape == (2,)
    assert source.taken == 2 and len(common) == 4
    assert next(late)[0] is not None and source.taken == 2  # the last two are there
    next(first), next(first)
    assert torch.equal(next(late)[0].pixels, source.batches[1][0]) and source.taken == 5
    assert next(common.epoch(1, 3))[0] is not images


@pytest.mark.parametrize("order", [("features", 0, 1), (1, 0, "features"), (1, "features", 0)])
def test_layers_that_are_expected_are_kept_on_the_way_to_the_same_bits(clip: Clip, order: tuple[int | str, ...]) -> None:
    (pixels, _), passes, embed = noise(1)[0], 0, clip.vision.embed

    def counted(images: torch.Tensor) -> object:
        nonlocal passes
        passes += 1
        return embed(images)

    images, apart = Images(pixels, expected=(0, 1)), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip.vision, "embed", counted)
        found = {each: images.encoded(clip) if each == "features" else images.entering(clip, int(each)).main for each in order}
    apart = {each: Images(pixels).encoded(clip) if each == "features" else Images(pixels).entering(clip, int(each)).main for each in order}
    assert passes == 1 and images.asked == {0, 1} and all(torch.equal(found[each], apart[each]) for each in order)
