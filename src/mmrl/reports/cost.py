"""What methods cost (the paper's Table 6): the rows of a results folder's `cost.json`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from mmrl.reports.measures import HM, StudyScores, same_arm
from mmrl.reports.plans import COST
from mmrl.reports.records import Environment, Fraction, Part
from mmrl.reports.results import Results

COST_FILE = f"{COST}.json"
STUDY = "base-to-novel"


class CostRow(Part):
    """One method on one machine. Images are decoded in main memory beforehand: no time here includes reading them."""

    method: str
    title: str = Field("", description="the method's name in tables; empty: `method`")
    variant: str = Field("", description="options that differ from the recipe's, 'rep_dim=32'")
    modality: str = Field(description="towers trained: 'V-L' from one space, 'V, L' each on its own, 'V', 'L', '-' for none, '' unknown")
    trained_parameters: int = Field(ge=0)
    train_ms_per_image: float | None = Field(None, ge=0, description="median over `steps` steps; null where nothing is trained")
    train_minutes: float | None = Field(
        None, ge=0, description="that times all images of all epochs of the recipe; `kept_ms_per_image` of views that are shown again"
    )
    views: int | None = Field(None, ge=1, description="of an image, shown in turn; null: a new one in every epoch")
    kept_ms_per_image: float | None = Field(None, ge=0, description="as `train_ms_per_image`, of a view that was shown before")
    views_gib: float | None = Field(None, ge=0, description="what is kept of all views, in memory and in a file")
    images_per_second: float = Field(gt=0, description="at test, class features computed before")
    batch: int = Field(ge=1, description="images a batch at test")
    peak_memory_gib: float = Field(
        ge=0, description="CUDA: most memory allocated; CPU: the frozen weights and what training and test add to them"
    )
    hm: Fraction | None = Field(None, description="of the same results folder, as in its report: of the averages over seeds and data sets")
    dataset: str
    backbone: str
    shots: int | None = Field(None, description="images a class; null where nothing is trained")
    precision: Literal["fp32", "bf16", "fp16"]
    steps: int = Field(ge=1, description="training steps measured, after a few that are not")
    environment: Environment

    IDENTITY: ClassVar = ("method", "variant", "dataset", "backbone", "shots", "precision", "batch")

    @property
    def place(self) -> tuple[Any, ...]:
        """What two rows must not share: a new measurement replaces the old one."""
        hardware = self.environment.hardware
        return *(getattr(self, name) for name in self.IDENTITY), hardware.get("gpu") or hardware.get("cpu"), hardware.get("threads")


class CostTable(Part):
    schema_name: str = Field("mmrl.cost/1", alias="schema")
    rows: tuple[CostRow, ...] = ()

    def joined(self, *rows: CostRow) -> CostTable:
        """With `rows`, in place of those measured before for the same."""
        places = {row.place for row in rows}
        return self.model_copy(update={"rows": (*(row for row in self.rows if row.place not in places), *rows)})


def hm_of(results: Results, method: str, *, variant: str, backbone: str, shots: int | None) -> float | None:
    """HM of the base and novel accuracies, each averaged over seeds and the data sets of the folder's base-to-novel plan.

    None if there is no such plan, or scores of the method are missing or not applicable.
    """
    plan = results.plans.get(STUDY)
    if plan is None:
        return None
    scores = StudyScores(results, plan)
    arms = same_arm(scores.arms, method, variant=variant, backbone=backbone, shots=shots)
    found = scores.average(arms[0], HM) if arms else None
    return found.mean / 100 if found and found.mean is not None and found.complete else None
