"""The merges of CLIP's byte-pair tokenizer, as a file that other programs read."""

from __future__ import annotations

import gzip
from typing import Any

from mmrl.clip.deferred import open_clip

HEADER = "#merges of CLIP's byte-pair encoding, the most frequent first\n"


def vocabulary_file(tokenizer: Any) -> bytes | None:
    """The merges of `tokenizer`, gzipped, a line each: two parts with a space between them. None where it is not CLIP's own, in lower
    case."""
    plain = open_clip().SimpleTokenizer
    if type(tokenizer) is not plain or tokenizer.reduction_fn is not None or len(tokenizer.all_special_ids) != 2:
        return None
    if tokenizer.clean_fn("A b") != "a b" or tokenizer.clean_fn("a.") != "a.":
        return None
    lines = "".join(f"{first} {second}\n" for first, second in sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__))
    return gzip.compress((HEADER + lines).encode(), mtime=0)
