"""Zero-shot text features of long lists of prompts, kept in the user's cache folder beside the identities of backbones.

A file's name is a hash of all that decides the features, to the bit: the prompts, the backbone's identity, the type of its weights, the
code and the releases that compute them, the device and its arithmetic. So they are the numbers that the text tower would give, and nothing
has to be cleared; the ones used longest ago make room. Several processes may share the folder, and be killed: a file that is there is
whole, and one that is damaged is computed anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmrl.clip import identities
from mmrl.clip.device import arithmetic
from mmrl.rows import RowsFolder, row_type, table_of, written

if TYPE_CHECKING:
    from pathlib import Path

    from mmrl.clip.backbone import Clip

LEAST = 2000  # prompts of a list whose features are kept: fewer are encoded in seconds
MOST_GIB = 1.0  # of all files together; ImageNet-21k's list takes 0.04 at ViT-B/16
DTYPES: dict[torch.dtype, np.dtype[Any]] = {torch.float16: np.dtype("<f2"), torch.float32: np.dtype("<f4"), torch.float64: np.dtype("<f8")}


def folder() -> Path:
    """Where they are kept: `text` in $MMRL_CACHE, or in mmrl of the user's cache folder."""
    return identities.folder().with_name("text")


def kept_features(clip: Clip, texts: Sequence[str], count: int, make: Callable[[], Tensor], *, normalise: bool = True) -> Tensor:
    """What `make` gives for `texts`: features (count, embed_dim), read where they are kept, else computed, and kept if the list is long.

    Args:
        count: classes; as many as texts, or fewer, over whose templates they are averaged.
        normalise: whether they have length 1; it decides what `make` gives.
    """
    dtype = next(clip.model.parameters()).dtype
    code = identities.code() if len(texts) >= LEAST and dtype in DTYPES else None
    if code is None or torch.is_autocast_enabled(clip.device.type) or not identities.writable(folder()):
        return make()
    decides = (identities.hash_of(json.dumps(list(texts))), count, normalise, clip.identity, str(dtype), code, identities.releases())
    name, row = identities.hash_of(*decides, arithmetic(clip.device)), row_type(DTYPES[dtype], (clip.embed_dim,))
    kept = RowsFolder(folder(), MOST_GIB)
    table = kept.read(name, count, row)
    if table is not None:
        found = [written(table, at) for at in range(count)]
        if all(each is not None for each in found):
            return torch.from_numpy(np.stack(found)).to(clip.device)  # type: ignore[arg-type]  # none is None
        kept.forget(name)
    made = make()
    values = made.detach().cpu().numpy()
    if values.dtype == DTYPES[dtype] and values.shape == (count, clip.embed_dim):
        kept.write(name, table_of(values))
    return made
