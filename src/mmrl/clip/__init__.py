"""Frozen CLIP: loading, staged vision and text towers, tokenising, the embedded tiny model. Knows no method."""

from mmrl.clip.backbone import ClassList, Clip
from mmrl.clip.layers import Edit, Edits
from mmrl.clip.load import load_clip, random_clip

__all__ = ["ClassList", "Clip", "Edit", "Edits", "load_clip", "random_clip"]
