"""The training loop against the authors' steps: loss of each step and every parameter after them, with the optimiser of each method.

What trains is float32, and its rounding is the processor's business, so it is held by norms. The same loop in float64 is held element by
element, but for the values that the rounding of the golden gradients decides (see `test_oracle_golden.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import engine
from mmrl.clip import ClassList, Clip, load_clip
from mmrl.engine.loop import Trainer
from mmrl.methods import Method
from tests.oracle.pair import relative_error
from tests.parity.test_oracle_golden import ROUNDING_DECIDES, TOLERANCE
from tools.golden import baselines, mmrl
from tools.golden.judge import Tensors, load, ours, read_tensors, rounding_decides
from tools.golden.replay import Stepping, stepping

GOLDEN = Path(__file__).parents[1] / "golden"
SHEET = json.loads((GOLDEN / "mmrl" / "golden.json").read_text())
BASELINES = json.loads((GOLDEN / "baselines" / "golden.json").read_text())
STEPPED = [name for name, case in BASELINES["cases"].items() if len(case.get("losses", ())) > 1 and baselines.method_of(name)]
ADAMW = Stepping("AdamW", {"lr": 1e-3, "weight_decay": 5e-4, "eps": 1e-8})


class GoldenBatches:
    """The golden batches, `each` of them an epoch."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype, each: int = 8) -> None:
        self.images, self.labels, self.each = tensors["images"].to(dtype), tensors["labels"].long(), each

    def __len__(self) -> int:
        return self.each

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        here = slice(number * self.each + start, (number + 1) * self.each)
        yield from zip(self.images[here], self.labels[here], strict=True)


@pytest.fixture(scope="module")
def clips() -> dict[torch.dtype, Clip]:
    made = {dtype: load_clip(str(GOLDEN / "mmrl" / "clip.safetensors"), device="cpu") for dtype in (torch.float32, torch.float64)}
    for dtype, clip in made.items():
        clip.model.to(dtype)
    return made


def start(case: str, clip: Clip) -> tuple[Method, Tensors]:
    """MMRL or MMRL++ with the case's initial parameters, and the case's tensors."""
    tensors = read_tensors(GOLDEN / "mmrl" / f"{case}.safetensors")
    method = mmrl.build(SHEET["cases"][case], clip).to(next(clip.model.parameters()).dtype)
    load(method, tensors)
    return method, tensors


def losses_agree(history: list[dict[str, float]], losses: list[float]) -> bool:
    found, golden = torch.tensor([row["loss"] for row in history]), torch.tensor(losses)
    return relative_error(found, golden) <= TOLERANCE


def config_of(how: Stepping, epochs: int) -> engine.FitConfig:
    values: dict[str, Any] = {key: how.settings[key] for key in ("lr", "momentum", "weight_decay", "eps") if key in how.settings}
    schedule = "constant" if how.cosine is None else "cosine"
    return engine.FitConfig(
        optimizer=how.kind.lower(), epochs=epochs, warmup_epochs=0, schedule=schedule, schedule_step="step", batch_size=4, **values
    )


def element_by_element(method: Method, tensors: Tensors, classes: ClassList, how: Stepping, case: Mapping[str, Any]) -> int:
    """Run the loop in float64, which `engine.fit` refuses; compare, and count what rounding decides."""
    hyper = case.get("hyper", {})
    epochs = hyper.get("epochs", 1)
    batches = GoldenBatches(tensors, torch.float64, hyper.get("steps_per_epoch", len(case["losses"])))
    trainer = Trainer(method, batches, classes, config_of(how, epochs))
    trainer.run()
    assert losses_agree(trainer.history, case["losses"])
    gradients, left_out = ours(method, tensors, "grad."), 0
    for name, golden in ours(method, tensors, "final.").items():
        found = method.get_parameter(name)
        assert found.dtype == torch.float64
        undecided = torch.zeros(golden.shape, dtype=torch.bool)
        if how.eps is not None:
            undecided = rounding_decides(gradients[name], golden, lr=how.lr, eps=how.eps)
        assert (found - golden)[~undecided].abs().max() <= TOLERANCE * golden.abs().max(), name
        left_out += int(undecided.sum())
    return left_out


@pytest.mark.parametrize("case", ["mmrl", "mmrlpp"])
def test_eight_steps(clips: dict[torch.dtype, Clip], case: str) -> None:
    method, tensors = start(case, clips[torch.float32])
    data = engine.TrainingData(GoldenBatches(tensors, torch.float32), tuple(SHEET["classnames"]), SHEET["template"])
    result = engine.fit(method, data, config_of(ADAMW, 1), engine.Place(progress=False))
    assert losses_agree(result.history, SHEET["cases"][case]["losses"])
    for name, golden in ours(method, tensors, "final.").items():
        assert relative_error(method.state_dict()[name], golden) <= TOLERANCE, name


@pytest.mark.parametrize("case", ["mmrl", "mmrlpp"])
def test_eight_steps_element_by_element(clips: dict[torch.dtype, Clip], case: str) -> None:
    method, tensors = start(case, clips[torch.float64])
    classes = method.class_list(SHEET["classnames"], SHEET["template"])
    assert element_by_element(method, tensors, classes, ADAMW, SHEET["cases"][case]) == ROUNDING_DECIDES[case]


@pytest.mark.parametrize("name", STEPPED)
def test_steps_of_the_other_methods(clips: dict[torch.dtype, Clip], name: str) -> None:
    case, tensors = BASELINES["cases"][name], read_tensors(GOLDEN / "baselines" / f"{name}.safetensors")
    run = baselines.start(name, case, tensors, clips[torch.float64], BASELINES["about"]["classnames"])
    run.recorded()
    assert element_by_element(run.method, tensors, run.classes, stepping(case), case) == 0
