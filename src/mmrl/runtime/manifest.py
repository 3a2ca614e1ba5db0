"""What is in an exported folder: `manifest.json`, which names every other file with its size and SHA-256, and is written last.

The manifest is plain JSON, so that programs in other languages can read it; docs/export.md describes its fields.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
IMAGE = "image.onnx"
TEXT = "text.onnx"
CLASSES = "classes.npy"
VOCABULARY = "vocabulary.txt.gz"

PIXELS = "pixels"
CLASS_FEATURES, REPRESENTATION_FEATURES, LOGITS = "class_features", "representation_features", "logits"
TEXT_FEATURES = "features"

FULL, TRAINED = "full", "trained"  # kinds: any class, or those that were trained alone

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_BLOCK = 2**20


def file_entry(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as the manifest has them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
