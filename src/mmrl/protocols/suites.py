"""Which data sets the evaluations run over: the paper's 15, and the mini benchmark's in the same roles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """Data sets by role.

    Attributes:
        single: trained and tested on themselves (base-to-novel, few-shot, ablations).
        source: trained on once, for cross-dataset and domain generalisation.
        targets: cross-dataset.
        shifted: domain generalisation: the source's classes in other pictures.
    """

    name: str
    single: tuple[str, ...]
    source: str
    targets: tuple[str, ...]
    shifted: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.single, self.source, *self.targets, *self.shifted)))


_ELEVEN = tuple("imagenet caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101".split())
_FIVE = tuple(f"mini:{name}" for name in "objects textures glyphs layouts digits".split())

PAPER = Suite("paper", _ELEVEN, "imagenet", _ELEVEN[1:], ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"))
MINI = Suite(
    "mini", _FIVE, "mini:objects", _FIVE[1:], tuple(f"mini:objects-{name}" for name in "resampled sketch cluttered rendition".split())
)
