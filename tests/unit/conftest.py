"""Fixtures of several files: the command line, photos, an adapter trained on them, and what a grid needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.cli.main import run
from mmrl.engine import Context
from tests.unit import grids

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmrl", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as left:
            run()
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight photos each, one red, one blue."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, channel in (("red_thing", 0), ("blue thing", 2)):
        (root / name).mkdir()
        for i in range(8):
            pixels = random.integers(0, 60, (48, 56, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(root / name / f"{i}.jpg")
    return root


@pytest.fixture(scope="session")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmrl import api

    out = tmp_path_factory.mktemp("runs") / "x"
    api.train(photos, shots=2, out=out, overrides={"epochs": 2, "batch_size": 2}, progress=False)
    return out


@pytest.fixture(scope="module")
def context() -> Context:
    return grids.smallest()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grids.photos(tmp_path_factory.mktemp("data") / "photos")
