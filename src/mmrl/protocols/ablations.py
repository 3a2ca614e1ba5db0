"""The paper's ablations: base-to-novel with one thing changed (section 4.6, supplements C to E)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmrl.errors import UsageError
from mmrl.protocols.evaluations import base_to_novel
from mmrl.protocols.plan import ZERO_SHOT, Cell, values, variant_of

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Ablation:
    """One ablation.

    Attributes:
        table: where the paper has it.
        option: the option whose value is changed, or '' where `rows` say what is.
        rows: label -> options of a training.
        at_test: label -> options that matter at test only: these rows share the unchanged training.
        fixed: by method, data sets on which this option keeps its recipe's value.
    """

    table: str
    summary: str
    option: str = ""
    rows: Mapping[str, Settings] = field(default_factory=dict)
    at_test: Mapping[str, Settings] = field(default_factory=dict)
    fixed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _sweep(option: str, numbers: Sequence[Any]) -> dict[str, Settings]:
    return {str(number): {option: number} for number in numbers}


ABLATIONS: dict[str, Ablation] = {
    "variants": Ablation(
        "Table 4, left",
        "parts of MMRL left out",
        rows={
            "w/o L": {"textual": False},
            "w/o V": {"visual": False},
            "w/o RS": {"space": "free"},
            "MMRL-dagger": {"space": "text-to-visual"},
            "full": {},
        },
        at_test={"w/o DS1": {"inference": "class"}, "w/o DS2": {"inference": "both"}},
    ),
    "rep-dim": Ablation(
        "Table 4, right",
        "d_r, width of the representation space",
        "rep_dim",
        _sweep("rep_dim", (32, 128, 256, 512, 1024, 2048)),
        fixed={"mmrl": ("eurosat",)},  # supplement A
    ),
    "layers": Ablation("Fig. 5, left", "J, first layer with representation tokens", "first_layer"),
    "tokens": Ablation("Fig. 5, right", "K, number of representation tokens", "rep_tokens", _sweep("rep_tokens", (1, 3, 5, 7, 9))),
    "alpha": Ablation("Table 5, left", "alpha, weight of the class token", "alpha", _sweep("alpha", (0.0, 0.3, 0.5, 0.7, 1.0))),
    "lambda": Ablation(
        "Table 8 and Table 5, right",
        "lambda, weight of the regularisation",
        "lam",
        _sweep("lam", (0.0, 0.01, 0.1, 0.2, 0.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 10.0)),
    ),
    "regulariser": Ablation("Table 9", "distance to the zero-shot features", "regulariser", _sweep("regulariser", ("cosine", "l1", "mse"))),
}


@dataclass(frozen=True)
class Tower:
    """The image tower whose layers are ablated: its depth, and J where it is not given."""

    depth: int
    default_layer: int

    @property
    def layers(self) -> list[int]:
        """Values of J: the first layer, every second one, and the default."""
        return sorted({1, *range(2, self.depth + 1, 2), self.default_layer})


def ablate(
    name: str,
    datasets: Sequence[str],
    seeds: Sequence[int],
    *,
    method: str = "mmrl",
    tower: Tower | None = None,
    numbers: Sequence[Any] | None = None,
    shots: int = 16,
    overrides: Settings | None = None,
) -> list[Cell]:
    """Cells of one ablation.

    Args:
        name: of `ABLATIONS`.
        tower: for "layers".
        numbers: other values of the option than the paper's.
        overrides: options that every row has.

    Raises:
        UsageError: `numbers` for an ablation that has no single option, or options both overridden and ablated.
    """
    if method == ZERO_SHOT:
        raise UsageError("zero-shot has nothing to ablate; give another --method.")
    ablation = ABLATIONS[name]
    rows = _rows(name, ablation, tower, numbers)
    taken = sorted({key for row in (*rows.values(), *ablation.at_test.values()) for key in row} & set(overrides or {}))
    if taken:
        raise UsageError(f"{taken[0]} is what `ablate {name}` changes, so it cannot be set to {(overrides or {})[taken[0]]!r} as well.")
    cells: list[Cell] = []
    for dataset in datasets:
        for label, options in {**rows, **{label: {} for label in ablation.at_test}}.items():
            kept = {} if dataset in ablation.fixed.get(method, ()) else options
            made = base_to_novel((method,), (dataset,), seeds, shots=(shots,), overrides={**(overrides or {}), **kept})
            at_test = values(ablation.at_test.get(label))
            variant = ", ".join(filter(None, (label, variant_of(values(overrides)))))
            cells += [replace(cell, study=name, variant=variant, options=at_test) for cell in made]
    return cells


def _rows(name: str, ablation: Ablation, tower: Tower | None, numbers: Sequence[Any] | None) -> Mapping[str, Settings]:
    if numbers is not None:
        if not ablation.option:
            raise UsageError(f"`ablate {name}` takes no --values: its rows are {', '.join([*ablation.rows, *ablation.at_test])}.")
        return _sweep(ablation.option, numbers)
    if ablation.rows:
        return ablation.rows
    if tower is None:
        raise UsageError(f"`ablate {name}` needs the depth of the image tower or --values.")
    return _sweep(ablation.option, tower.layers) | {str(tower.default_layer): {}}  # so that it shares the unchanged training
