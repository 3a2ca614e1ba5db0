"""The paper's evaluations as pure plans: lists of cells, made from names and numbers alone. Knows no model and reads no image."""

from mmrl.protocols.ablations import ABLATIONS, Ablation, Tower, ablate
from mmrl.protocols.evaluations import (
    BENCHES,
    EVALUATIONS,
    base_to_novel,
    cross_dataset,
    domain_generalisation,
    evaluation,
    few_shot,
    open_world,
)
from mmrl.protocols.plan import Cell, Training
from mmrl.protocols.suites import MINI, PAPER, Suite
from mmrl.protocols.sweeps import sweep

__all__ = [
    "ABLATIONS",
    "BENCHES",
    "EVALUATIONS",
    "MINI",
    "PAPER",
    "Ablation",
    "Cell",
    "Suite",
    "Tower",
    "Training",
    "ablate",
    "base_to_novel",
    "cross_dataset",
    "domain_generalisation",
    "evaluation",
    "few_shot",
    "open_world",
    "sweep",
]
