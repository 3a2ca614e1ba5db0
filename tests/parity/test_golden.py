"""Our methods against numbers of the authors' code, through the tool that does it for any folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tools import check_golden

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "mmrl"


def test_every_tensor_agrees() -> None:
    result = subprocess.run([sys.executable, str(ROOT / "tools" / "check_golden.py"), str(GOLDEN)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    head, *rows = (re.split(r"\s{2,}", line) for line in result.stdout.splitlines())
    assert head == ["case", "group", "float64 norm", "float64 element", "left out", "float32 norm"]
    assert {row[0] for row in rows} == {"mmrl", "mmrlpp"} and len(rows) == 14
    # 2 of MMRL's 182,208 final values and none of MMRL++'s are decided by rounding
    assert [int(row[4]) for row in rows if row[1] == "final parameters"] == [2, 0]
    assert not any(int(row[4]) for row in rows if row[1] != "final parameters")


def test_a_wrong_number_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    about = json.loads((folder / "golden.json").read_text())
    del about["cases"]["mmrl"]
    (folder / "golden.json").write_text(json.dumps(about))
    tensors = load_file(folder / "mmrlpp.safetensors")
    key = "grad.representation_learner.srra_r2vproj.srra.3.A"
    tensors[key] = tensors[key] * 1.001
    (folder / "mmrlpp.safetensors").unlink()
    save_file(tensors, folder / "mmrlpp.safetensors")
    assert check_golden.main([str(folder)]) == 1
    over = [line for line in capsys.readouterr().out.splitlines() if "OVER" in line]
    assert len(over) == 1 and "gradients" in over[0]
