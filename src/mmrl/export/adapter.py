"""A classifier becomes a folder that other programs run."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mmrl.errors import UsageError, unknown
from mmrl.export.folder import whole_folder
from mmrl.export.onnx_graph import USUAL_OPSET, check_opset

if TYPE_CHECKING:
    from mmrl.classifier.predictor import Classifier

Precision = Literal["float32", "int8"]
MAX_LOSS = 1.0  # points of accuracy


@dataclass(frozen=True)
class ExportOptions:
    """How a classifier is exported.

    Attributes:
        precision: of the weights: "float32", or "int8", which `check` must allow.
        check: labelled images, all that `Classifier.evaluate` takes, on which int8 is compared with float32.
        root: folder with the downloaded data sets, for `check`.
        max_loss: points of accuracy that int8 may lose there.
        opset: of ONNX.
        text: whether the text tower goes along, with which new classes are named.
        ort: of a page, where the npm package onnxruntime-web is: its folder, or the .tgz of `npm pack`; default: npm is asked once.
    """

    precision: Precision = "float32"
    check: Any = None
    root: Path | None = None
    max_loss: float = MAX_LOSS
    opset: int = USUAL_OPSET
    text: bool = True
    ort: str | Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise unknown("precision", self.precision, get_args(Precision))
        check_opset(self.opset)
        if not 0 <= self.max_loss <= 100:
            raise UsageError(f"max_loss is {self.max_loss}; it is points of accuracy, from 0 to 100.")
        if self.precision == "int8" and self.check is None:
            raise UsageError("int8 loses accuracy, and how much must be measured: give labelled images with check (--check DATA).")
        if self.precision != "int8" and (self.check is not None or self.max_loss != MAX_LOSS):
            raise UsageError("check and max_loss (--check, --max-loss) are for int8: give precision='int8' (--precision int8), too.")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        bytes: of all files.
        largest_difference: from torch, of any number that came out, over all batch sizes that were tried.
        notes: what the user should know of it.
    """

    folder: Path
    bytes: int
    largest_difference: float
    notes: tuple[str, ...] = ()


def export_adapter(
    adapter: Classifier | str | Path, folder: str | Path, *, to: str = "onnx", backbone: str | None = None, **options: Any
) -> Exported:
    """Write a classifier as a folder that other programs run: ONNX Runtime, `mmrl.runtime` without torch, a browser.

    What was written is run, on batches of sizes that were not traced, and compared with torch before the folder appears.

    Args:
        adapter: a `Classifier`, of which a copy is exported, so that other threads may ask it meanwhile; or the folder of one, or a hub
            name, as `mmrl.from_pretrained` takes them.
        folder: a new one, or an earlier export, which is replaced.
        to: "onnx", ... (`mmrl.export.TARGETS`).
        backbone: as of `mmrl.from_pretrained`.
        options: fields of `ExportOptions`.

    Raises:
        UsageError: an unknown target, a bad option, a folder with something else in it, or a method that cannot be exported.
        MmrlError: the program differs from torch, or a file cannot be written.
    """
    from mmrl.api import from_pretrained
    from mmrl.export.targets import TARGETS

    if to not in TARGETS:
        raise unknown("target of an export", to, TARGETS)
    chosen = _chosen(to, options)
    if backbone is not None and not isinstance(adapter, (str, Path)):
        raise UsageError(f"backbone is '{backbone}', but a Classifier has one already. Leave it out, or give the folder of the adapter.")
    with whole_folder(folder) as (place, temporary):
        classifier = from_pretrained(adapter, backbone=backbone, device="cpu") if isinstance(adapter, (str, Path)) else _apart(adapter)
        difference, notes = TARGETS[to](classifier, temporary, chosen)
        size = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    return Exported(place, size, difference, tuple(notes))


def _chosen(to: str, options: dict[str, Any]) -> ExportOptions:
    """The options of an export to `to`. Raises UsageError where one is unknown, wrong, or of another target."""
    for name in options:
        if name not in ExportOptions.__annotations__:
            raise unknown("option of an export", name, ExportOptions.__annotations__)
    try:
        chosen = ExportOptions(**options)
    except TypeError as error:
        raise UsageError(f"an option of an export is of a wrong type: {error}. Given: {', '.join(options)}.") from error
    if chosen.ort is not None and to != "web":
        raise UsageError(f"ort (--ort) is for an export to web, and this one is to {to}. Leave it out.")
    if chosen.opset != USUAL_OPSET and to == "pt2":
        raise UsageError("opset (--opset) is of ONNX, and an export to pt2 has none. Leave it out.")
    return chosen


def _apart(classifier: Classifier) -> Classifier:
    """A copy with weights of its own, on the processor, where programs are compared: torch puts other tensors into modules while it traces
    them, and threads may be asking this one."""
    from mmrl.classifier.predictor import Classifier

    return Classifier(
        deepcopy(classifier.method).cpu(), trained=classifier.trained, template=classifier.template, trained_on=classifier.trained_on,
        trust=classifier.trust, **classifier.about(),
    )  # fmt: skip
