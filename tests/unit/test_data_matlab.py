"""The reader of MATLAB files against scipy's, on files of MATLAB itself and on some written here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
from scipy.io import loadmat, savemat

from mmrl.data.benchmark.matlab import read_variable

OF_MATLAB = sorted((Path(scipy.__file__).parent / "io/matlab/tests/data").glob("test*_[67].*.mat"))
KINDS = "double string cell cellnest scalarcell emptycell structarr structnest matrix 3dmatrix minus multi onechar unicode".split()


def plain(found: Any) -> Any:
    """What scipy reads, as the reader gives it."""
    if isinstance(found, np.ndarray) and found.dtype.names:
        return [{name: plain(each[name]) for name in found.dtype.names} for each in found.ravel(order="F")]
    if isinstance(found, np.ndarray) and found.dtype.kind == "U":
        return "".join(found.ravel().tolist())
    if isinstance(found, np.ndarray) and found.dtype == object:
        return [plain(each) for each in found.ravel(order="F")]
    return found.ravel(order="F").tolist() if isinstance(found, np.ndarray) else found


@pytest.mark.skipif(not OF_MATLAB, reason="this scipy was installed without its test files")
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_matlab(kind: str) -> None:
    for path in (path for path in OF_MATLAB if path.name.startswith(f"test{kind}_")):
        for name, value in loadmat(path, chars_as_strings=True).items():
            if not name.startswith("__"):
                assert read_variable(path.read_bytes(), name) == plain(value), (path.name, name)


@pytest.mark.parametrize("compressed", [False, True])
def test_lists_as_the_authors_have_them(compressed: bool) -> None:
    names = np.empty((1, 3), dtype=object)
    names[0, :] = ["AM General Hummer SUV 2000", "Citroën C4", "smart fortwo Convertible 2012"]
    fields = [(name, object) for name in ("class", "fname", "children")]
    cars = np.array([(np.uint16(300), "a.jpg", np.zeros((1, 0))), (np.uint8(2), "b.jpg", np.arange(3.0))], dtype=fields)
    content = {"labels": np.arange(1, 103, dtype=np.uint8)[None], "class_names": names, "annotations": cars[:, None], "big": 2.0**40}
    file = io.BytesIO()
    savemat(file, content, do_compression=compressed)
    found = {name: read_variable(file.getvalue(), name) for name in content}
    assert found["labels"] == list(range(1, 103)) and found["class_names"] == names[0].tolist() and found["big"] == [2.0**40]
    assert found["annotations"] == [
        {"class": [300], "fname": "a.jpg", "children": []}, {"class": [2], "fname": "b.jpg", "children": [0, 1, 2]}
    ]  # fmt: skip
    with pytest.raises(ValueError, match="it has no variable 'label'"):
        read_variable(file.getvalue(), "label")


def test_what_is_no_such_file() -> None:
    file = io.BytesIO()
    savemat(file, {"x": [1]}, format="4")
    for content in (b"", b"MATLAB 5.0", bytes(200), file.getvalue()):
        with pytest.raises(ValueError, match="no MATLAB file of version 5 to 7"):
            read_variable(content, "x")


def test_numbers_that_no_list_has() -> None:
    file = io.BytesIO()
    savemat(file, {"x": np.array([1j])})
    with pytest.raises(ValueError, match="is of the kind 0x806, which no list of images has"):
        read_variable(file.getvalue(), "x")


def test_a_variable_that_inflates_without_end_is_refused() -> None:
    file = io.BytesIO()
    savemat(file, {"labels": np.zeros((1, 2**25), np.uint8)}, do_compression=True)
    assert len(file.getvalue()) < 2**17
    with pytest.raises(ValueError, match="cut short"):
        read_variable(file.getvalue(), "labels")
