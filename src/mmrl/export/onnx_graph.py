"""ONNX files of exported programs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from mmrl.errors import MmrlError, UsageError, first_line
from mmrl.export.compare import Run
from mmrl.export.quiet import quiet
from mmrl.runtime.classifier import opened

LOWEST_OPSET, HIGHEST_OPSET, USUAL_OPSET = 18, 22, 18
MOST_IN_ONE_FILE = 2**31 - 2**24  # bytes: a protobuf ends at 2 GiB; what is more lies in a file beside it
EXTRA = 'pip install "mmrl[export]"'


def require_onnx() -> None:
    """Raises UsageError where a library of the extra is missing."""
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UsageError(f"an export to ONNX needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not here: {EXTRA}")


def check_opset(opset: int) -> None:
    if not isinstance(opset, int) or not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise UsageError(f"opset is {opset!r}; it must be {LOWEST_OPSET} to {HIGHEST_OPSET}.")


def write_onnx_graph(
    program: torch.export.ExportedProgram, path: Path, *, inputs: Sequence[str], outputs: Sequence[str], size: str, opset: int
) -> list[Path]:
    """Write `program` to `path`, with weights above 2 GB in a file beside it. Returns the files.

    Args:
        size: name of the size of the inputs that may be any.

    Raises:
        MmrlError: a step of the program has no counterpart in ONNX.
    """
    try:
        with quiet():
            made = torch.onnx.export(
                program, dynamo=True, opset_version=opset, input_names=[*inputs], output_names=[*outputs], optimize=True, verbose=False
            )
    except Exception as error:
        raise MmrlError(f"cannot express {path.stem} in ONNX: {first_line(error)}") from error
    assert made is not None
    model = made.model_proto
    _cleaned(model, size)
    return saved(model, path)


def saved(model: Any, path: Path) -> list[Path]:
    """Write an ONNX model, with its weights in a file beside it where one file cannot hold them."""
    if model.ByteSize() <= MOST_IN_ONE_FILE:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return [path]
    beside = path.with_suffix(".onnx.data")
    import_module("onnx").save_model(model, str(path), save_as_external_data=True, location=beside.name, size_threshold=1024)
    return [path, beside]


def _cleaned(model: Any, size: str) -> None:
    """Without notes on where in this package's files each step came from; the open size under its name."""
    opened = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in opened:
                dim.dim_param = size
        del value.metadata_props[:]
    for each in (model, model.graph, *model.graph.node, *model.graph.initializer):
        each.doc_string = ""
        del each.metadata_props[:]
    for function in model.functions:
        for node in (function, *function.node):
            node.doc_string = ""
            del node.metadata_props[:]


def session_of(path: Path) -> Run:
    """What runs the ONNX file on arrays."""
    session = opened(path, None)
    names = [each.name for each in session.get_inputs()]

    def run(arrays: Sequence[NDArray[Any]]) -> Any:
        return session.run(None, dict(zip(names, arrays, strict=True)))

    return run
