"""MATLAB files, read in a process of their own: what is in them, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from mmrl.data.benchmark import matlab
from mmrl.data.benchmark.matlab import read_variable


def test_lists_as_the_authors_have_them(tmp_path: Path) -> None:
    names = np.empty((1, 3), dtype=object)
    names[0, :] = ["AM General Hummer SUV 2000", "Citroën C4", "smart fortwo Convertible 2012"]
    fields = [(name, object) for name in ("class", "fname", "children")]
    cars = np.array([(np.uint16(300), "a.jpg", np.zeros((1, 0))), (np.uint8(2), "b.jpg", np.arange(3.0))], dtype=fields)
    content = {"labels": np.arange(1, 103, dtype=np.uint8)[None], "class_names": names, "annotations": cars[:, None]}
    path = tmp_path / "lists.mat"
    savemat(path, content, do_compression=True)
    assert read_variable(path, "labels") == list(range(1, 103))
    assert read_variable(path, "class_names") == names[0].tolist()
    assert read_variable(path, "annotations") == [
        {"class": 300, "fname": "a.jpg", "children": []}, {"class": 2, "fname": "b.jpg", "children": [0, 1, 2]}
    ]  # fmt: skip
    with pytest.raises(ValueError, match="it has no variable 'label'"):
        read_variable(path, "label")


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "lists.mat"
    savemat(path, {"labels": np.arange(1000)})
    whole = path.read_bytes()
    for content in (b"", b"no such file", whole[:300]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="."):
            read_variable(path, "labels")


def test_a_reader_that_dies_is_an_error_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "killed.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(matlab, "__name__", "killed")
    with pytest.raises(ValueError, match="its reader ended with -11"):
        read_variable(tmp_path / "x.mat", "labels")


def test_a_variable_that_inflates_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zeros.mat"
    savemat(path, {"labels": np.zeros((1, 2**24), np.uint8)}, do_compression=True)
    assert path.stat().st_size < 2**16
    with pytest.raises(ValueError, match="has 16,777,216 values; at most"):
        read_variable(path, "labels")
