"""MMA: the name of its prompt."""

from __future__ import annotations

RENAMED = {"template": "prompt"}
