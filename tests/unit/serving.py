"""Adapters to serve, made without a training, and requests."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrl import methods
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip, load_clip
from mmrl.server.app import make_app
from mmrl.server.service import Service
from mmrl.server.settings import Limits, Settings
from mmrl.trust.state import Trust

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a successor of httpx
    from starlette.testclient import TestClient

ANIMALS = ("red panda", "badger", "pine marten")
PROMPT = "a photo of a {}."


def adapter(folder: Path, method: str = "mmrl", *, seed: int = 1, clip: Clip | None = None, calibrated: bool = False) -> Path:
    """Write an adapter with the values that its training would begin with."""
    made = methods.build(method, clip or load_clip("tiny", device="cpu"), seed=seed)
    trust = None
    if calibrated:
        logits = np.random.default_rng(0).normal(0, 3, (40, len(ANIMALS)))
        trust = Trust.fit(logits, logits.argmax(1), classes=ANIMALS, template=PROMPT, scale=made.logit_scale)
    return Classifier(made, trained=ANIMALS, template=PROMPT, trust=trust).save_pretrained(folder)


def photo(seed: int = 0, size: tuple[int, int] = (72, 64), kind: str = "JPEG") -> bytes:
    """An image file."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@contextmanager
def serving(*adapters: tuple[str, str], token: bytes | None = None, limits: Limits | None = None, **options: Any) -> Iterator[TestClient]:
    """A client of an application in this process; `client.app.state.service` is what it serves."""
    settings = Settings(adapters, device="cpu", reload=0, limits=limits or Limits(), **options)
    with TestClient(make_app(Service(settings), token), raise_server_exceptions=False) as client:
        yield client


def scores(answer: list[dict[str, Any]]) -> dict[str, float]:
    return {each["label"]: each["score"] for each in answer}
