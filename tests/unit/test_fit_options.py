"""What editors and notebooks complete is what `fit` takes: every option of data, run, training and methods, and no other."""

from __future__ import annotations

import inspect

import pytest

from mmrl import api
from mmrl.fit_options import FitOptions
from tools.fit_options import TARGET, options, spelled, text


def test_the_written_options_are_the_real_ones() -> None:
    assert TARGET.read_text(encoding="utf-8") == text(), "python -m tools.fit_options --write"
    assert {*FitOptions.__annotations__} == {*options()}
    assert {"holdout", "shots", "epochs", "lr", "lam", "out", "device", "n_ctx"} <= {*FitOptions.__annotations__}


@pytest.mark.parametrize("function", [api.fit, api.train, api.advise])
def test_signatures_name_every_option(function: object) -> None:
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    assert {*FitOptions.__annotations__} <= {*parameters}
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    assert parameters["holdout"].default is None and repr(parameters["lr"].default) == "<default>"
    assert parameters["lr"].annotation == "float"


def test_types_are_spelled_as_they_are_written() -> None:
    assert spelled(tuple[float, ...] | None) == "tuple[float, ...] | None"
    said = options()["optimizer"]
    assert said.types == ['Literal["adamw", "adam", "sgd"]']
