"""MaPLe: the name of its depth."""

from __future__ import annotations

RENAMED = {"depth": "prompt_depth"}
