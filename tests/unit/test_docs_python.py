"""The Python page: its examples run, in their order, with the embedded backbone."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
MADE = """
from pathlib import Path
import shutil
for number, name in enumerate(("holiday/x.jpg", "holiday/y.jpg", "a.jpg", "b.jpg", "new.jpg")):
    Path(name).parent.mkdir(exist_ok=True)
    shutil.copy(f"photos/red_thing/{number}.jpg", name)
"""


@pytest.mark.filterwarnings("ignore")
def test_the_examples_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    code = "".join([MADE, *blocks])
    assert code.count("ViT-B-16-quickgelu/openai") == 3
    code = code.replace("ViT-B-16-quickgelu/openai", "tiny").replace("holdout=0.2)", "holdout=0.2, epochs=1)")
    (tmp_path / "page.py").write_text(code)
    names = runpy.run_path(str(tmp_path / "page.py"))
    assert names["held"].count == 4 and names["found"].classes == names["clf"].classes == ("blue thing", "red thing")
