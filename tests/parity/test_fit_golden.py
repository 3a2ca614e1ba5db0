"""The training loop against the authors' eight steps: loss of each step and every parameter after them.

What trains is float32, and its rounding is the processor's business, so it is held by norms. The same loop in float64 is held element by
element, but for the two values that the rounding of the golden gradients decides (see `test_oracle_golden.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmrl import engine, methods
from mmrl.clip import load_clip
from mmrl.engine.loop import Trainer
from mmrl.engine.precision import accelerator
from mmrl.methods import Method
from mmrl.methods.authors import from_authors
from tests.oracle.pair import relative_error
from tests.parity.test_oracle_golden import ROUNDING_DECIDES, TOLERANCE, rounding_decides

GOLDEN = Path(__file__).parents[1] / "golden" / "mmrl"
SHEET = json.loads((GOLDEN / "golden.json").read_text())
CONFIG = engine.FitConfig(epochs=1, warmup_epochs=0, lr=1e-3, batch_size=4)


class GoldenBatches:
    def __init__(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
        self.images, self.labels = tensors["images"].to(dtype), tensors["labels"].long()

    def __len__(self) -> int:
        return len(self.images)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images[start:], self.labels[start:], strict=True)


def golden_tensors(case: str, method: type[Method], prefix: str) -> dict[str, Tensor]:
    """The case's tensors behind `prefix`, under our names."""
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    return from_authors(method, {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)})


def start(case: str, dtype: torch.dtype) -> tuple[Method, GoldenBatches]:
    """The method with the case's initial parameters, and its batches."""
    values = SHEET["cases"][case]
    options = {"rep_tokens": values["K"], "rep_dim": values["dr"], "alpha": values["alpha"], "lam": values["reg"]}
    options["first_layer"] = values["layers"][0]
    if case == "mmrlpp":
        options |= {"beta": values["beta"], "layer_rank": values["rlora"], "projection_rank": values["plora"]}
    clip = load_clip(str(GOLDEN / "clip.safetensors"), device="cpu")
    clip.model.to(dtype)
    method = methods.build(case, clip, options).to(dtype)
    method.load_state_dict(golden_tensors(case, type(method), "init."))
    return method, GoldenBatches(load_file(GOLDEN / f"{case}.safetensors"), dtype)


def losses_agree(history: list[dict[str, float]], case: str) -> bool:
    found, golden = (torch.tensor(losses) for losses in ([row["loss"] for row in history], SHEET["cases"][case]["losses"]))
    return relative_error(found, golden) <= TOLERANCE


@pytest.mark.parametrize("case", ["mmrl", "mmrlpp"])
def test_eight_steps(case: str) -> None:
    method, batches = start(case, torch.float32)
    result = engine.train(method, batches, SHEET["classnames"], CONFIG, template=SHEET["template"], progress=False)
    assert losses_agree(result.history, case)
    for name, golden in golden_tensors(case, type(method), "final.").items():
        assert relative_error(method.state_dict()[name], golden) <= TOLERANCE, name


@pytest.mark.parametrize("case", ["mmrl", "mmrlpp"])
def test_eight_steps_element_by_element(case: str) -> None:
    """In float64, which `engine.train` refuses, so the loop it runs is called here."""
    method, batches = start(case, torch.float64)
    classes = method.class_list(SHEET["classnames"], SHEET["template"])
    with accelerator(CONFIG, torch.device("cpu"), None) as tools:
        trainer = Trainer(method, batches, classes, CONFIG, tools)
        trainer.run()
    assert losses_agree(trainer.history, case)
    gradients, left_out = golden_tensors(case, type(method), "grad."), 0
    for name, golden in golden_tensors(case, type(method), "final.").items():
        assert method.state_dict()[name].dtype == torch.float64
        undecided = rounding_decides(gradients[name], golden)
        difference = (method.state_dict()[name] - golden)[~undecided]
        assert difference.abs().max() <= TOLERANCE * golden.abs().max(), name
        left_out += int(undecided.sum())
    assert left_out == ROUNDING_DECIDES[case]
