"""Trainings whose steps are recorded and replayed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import engine, methods
from mmrl.clip import Clip
from mmrl.engine.loop import Trainer
from mmrl.engine.replay import Recorder, why_eager
from tests.unit.colours import base_draw, colours, fresh

LOOP = import_module("mmrl.engine.loop")
FIT: dict[str, Any] = {"epochs": 2, "warmup_epochs": 1, "lr": 1e-2, "batch_size": 2, "schedule_step": "step"}  # 4 batches an epoch
Found = tuple[dict[str, Tensor], list[dict[str, float]]]


def by_steps() -> list[str]:
    ours = [name for name, cls in methods.registered().items() if cls.__module__.startswith("mmrl.")]
    closed = ("zero-shot", "ape", "clap", "gda", "linear-probe", "lpp", "tip-adapter")
    return [name for name in ours if name not in closed]


EAGER = ("metaprompt", "plot", "plotpp", "proda")


def recorded_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recorder | None], list[Trainer]]:
    """A fixture's body. Makes trainings use a recorder; gives the trainers."""

    def use(recorder: Recorder | None) -> list[Trainer]:
        made: list[Trainer] = []

        class Noted(Trainer):
            def __init__(self, *args: Any, **more: Any) -> None:
                super().__init__(*args, **more)
                made.append(self)

        monkeypatch.setattr(import_module("mmrl.engine.fit"), "Trainer", Noted)
        monkeypatch.setattr(LOOP, "recorder_of", lambda method, *_, **__: None if why_eager(method) else recorder)
        return made

    return use


def trained(clip: Clip, name: str, options: dict[str, Any] | None = None, wrap: Any = None, **values: Any) -> Found:
    method, config, place = fresh(clip, name, **(options or {})), engine.make_config({**FIT, **values}), engine.Place(progress=False)
    data = engine.TrainingData.of(clip, colours(), base_draw(), config, place)
    if wrap:
        data = engine.TrainingData(**{**data.__dict__, "batches": wrap(data.batches)})
    result = engine.fit(method, data, config, place)
    return {key: value.clone() for key, value in method.state_dict().items()}, result.history


def same(one: Found, other: Found) -> bool:
    """To the bit."""
    return one[1] == other[1] and all(torch.equal(value, other[0][key]) for key, value in one[0].items())
