"""The learning rate of every epoch against that of the published runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrl.engine import learning_rates

RUNS = json.loads((Path(__file__).parents[1] / "golden" / "lr_schedule.json").read_text())


@pytest.mark.parametrize("name", RUNS)
def test_equals_the_published_schedule(name: str) -> None:
    run = RUNS[name]
    found = learning_rates(run["epochs"], run["lr"], warmup=run["warmup_epochs"], warmup_lr=run["warmup_lr"] or 0.0)
    assert found == pytest.approx(run["lr_of_each_epoch"], rel=0, abs=1e-9)


def test_two_warmup_epochs_shift_the_cosine() -> None:
    plain, warm = learning_rates(10, 1e-3), learning_rates(10, 1e-3, warmup=2, warmup_lr=1e-5)
    assert warm == [1e-5, 1e-5, *plain[:8]]
