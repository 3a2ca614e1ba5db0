"""Frozen CLIP: loading, staged vision and text towers, tokenising, the embedded tiny model. Knows no method."""

from mmrl.clip.backbone import ClassList, Clip, Prompts
from mmrl.clip.images import AnyImages, Images
from mmrl.clip.layers import NO_EDITS, Edit, Edits
from mmrl.clip.load import load_clip, outline, random_clip
from mmrl.too_long import TooLongError, naming

__all__ = [
    "NO_EDITS",
    "AnyImages",
    "ClassList",
    "Clip",
    "Edit",
    "Edits",
    "Images",
    "Prompts",
    "TooLongError",
    "load_clip",
    "naming",
    "outline",
    "random_clip",
]
