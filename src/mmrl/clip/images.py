"""A batch of images, and what the frozen image tower makes of them, each computed once for all who ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmrl.clip.vision import ImageHidden

if TYPE_CHECKING:
    from mmrl.clip.backbone import Clip


class Images:
    """Images (B, 3, H, W), normalised, of which frozen passes are kept for as long as this object lives.

    Whoever asks next starts from what is there: the zero-shot pass from the states of the adapted one, and a second method from those of
    the first. The numbers are those of a pass of its own, to the bit. All who ask must do so in the same precision.

    Args:
        pixels: the images, or what makes them when they are first needed.
        states: those that enter a layer, where they are known already.
        features: what the frozen tower puts out (B, embed_dim), not normalised, where it is known already.
        expected: layers that will be asked for, in whatever order; a pass through one keeps what enters it.

    Attributes:
        asked: layers that were asked for.
    """

    def __init__(
        self, pixels: Tensor | Callable[[], Tensor], *, states: Mapping[int, ImageHidden] | None = None, features: Tensor | None = None,
        expected: Iterable[int] = (),
    ) -> None:  # fmt: skip
        self._pixels = pixels
        self.states = dict(states or {})
        self.features = features
        self.asked = set[int]()
        self._expected = set(expected)

    @classmethod
    def of(cls, images: Tensor | Images) -> Images:
        return images if isinstance(images, Images) else cls(images)

    def __len__(self) -> int:
        known = [*([] if self.features is None else [self.features]), *(hidden.main for hidden in self.states.values())]
        return len(known[0] if known else self.pixels)

    @property
    def pixels(self) -> Tensor:
        """The images themselves (B, 3, H, W)."""
        if not isinstance(self._pixels, Tensor):
            self._pixels = self._pixels()
        return self._pixels

    def expect(self, layers: Iterable[int]) -> None:
        """Layers that will be asked for besides."""
        self._expected.update(layers)

    @torch.no_grad()
    def entering(self, clip: Clip, layer: int) -> ImageHidden:
        """States, without gradient, that enter `layer` (from 0)."""
        self.asked.add(layer)
        return self._entering(clip, layer)

    @torch.no_grad()
    def encoded(self, clip: Clip) -> Tensor:
        """What the frozen tower puts out (B, embed_dim), not normalised and without gradient."""
        if self.features is None:
            if clip.not_staged is None:
                hidden, start = self._below(clip, clip.vision.depth - 1)
                self.features = clip.vision.finish(hidden, start).class_token @ clip.vision.projection
            else:
                self.features = clip.model.encode_image(self.pixels)
        return self.features

    def _entering(self, clip: Clip, layer: int) -> ImageHidden:
        if layer not in self.states:
            hidden, start = self._below(clip, layer - 1)
            self.states[layer] = clip.vision.run(hidden, start, layer)
        return self.states[layer]

    def _below(self, clip: Clip, layer: int) -> tuple[ImageHidden, int]:
        """The states that enter `layer`, or the nearest layer below it whose states are kept, and which layer that is."""
        start = max((each for each in (*self.states, *self._expected) if each <= layer), default=None)
        return (clip.vision.embed(self.pixels), 0) if start is None else (self._entering(clip, start), start)


AnyImages = Tensor | Images  # images (B, 3, H, W), normalised
