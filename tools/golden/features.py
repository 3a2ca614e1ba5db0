"""Replay of methods on cached features: a folder whose cases say their file and the prefix of their tensors in it. No CLIP is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mmrl.clip import ClassList
from tools.golden.judge import Errors
from tools.golden.methods import of_features


class FeatureClip:
    """In place of a CLIP, for a method that needs none: an image is its own feature.

    Args:
        text: features of classes (C, embed_dim), of whatever prompts.
        names: of these classes, where several lists of them are asked for; else they are those of every list.
    """

    name, device = "cached features", torch.device("cpu")

    def __init__(self, embed_dim: int, text: Tensor | None = None, logit_scale: float = 100.0, names: Sequence[str] = ()) -> None:
        self.embed_dim, self.logit_scale, self.names = embed_dim, logit_scale, list(names)
        self.text = torch.empty(0, embed_dim) if text is None else text

    def to(self, device: torch.device) -> FeatureClip:
        return self

    def encode_image(self, images: Tensor, *, normalise: bool = True) -> Tensor:
        return images

    def encode_text(self, texts: Sequence[str], *, normalise: bool = True) -> Tensor:
        return self.text

    def class_list(self, names: Sequence[str], template: str | Sequence[str], **_: object) -> ClassList:
        rows = [self.names.index(name) for name in names] if self.names else slice(None)
        return ClassList(tuple(names), self.text[rows])


def _found(case: str) -> tuple[str, ModuleType] | None:
    """Of the beginnings that are known, the longest one of a case's name."""
    known = [start for start in of_features() if case.startswith(start)]
    return of_features()[max(known, key=len)] if known else None


def method_of(case: str) -> str | None:
    """The registered method of a case, as in lpclip/unit; None if we have none."""
    found = _found(case)
    return found[0] if found else None


def replay(folder: Path, name: str, case: Mapping[str, Any], dtype: torch.dtype) -> Errors | None:
    """Errors of one case by group, from features in `dtype`; None for a method that is not here yet."""
    found = _found(name)
    errors: Errors | None = found[1].features(folder, name, case, dtype) if found else None
    return errors
