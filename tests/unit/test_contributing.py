"""The method that CONTRIBUTING.md shows is whole: it is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mmrl import api, methods
from mmrl.methods import registry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example, registered for the time of the test, from a module of its own."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    module = tmp_path / "offset_method.py"
    module.write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("offset_method")
    return "offset"


def test_the_example_trains_is_saved_and_classifies(offset: str, photos: Path, tmp_path: Path) -> None:
    result = api.train(photos, method=offset, shots=2, out=tmp_path / "run", progress=False, batch_size=2)
    assert {option.key: option.source for option in result.record.trained.options}["lr"] == "tried once"
    assert len({row["lr"] for row in result.record.trained.history}) > 1 and result.record.title == "Offset"
    assert result.method.state_dict()["offset"].abs().max() > 0
    loaded = api.from_pretrained(tmp_path / "run")
    assert torch.equal(loaded.method.state_dict()["offset"], result.method.state_dict()["offset"].cpu())
    assert loaded.predict(next(photos.rglob("*.jpg")), classes=["a new class", *loaded.trained]) in ("a new class", *loaded.trained)


def test_every_file_that_the_page_names_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links)


def test_every_example_of_the_table_is_a_method() -> None:
    titles = {cls.title.casefold() for cls in methods.registered().values()}
    rows = PAGE.split("| it needs |")[1].split("\n\n")[0]
    named = [name.strip() for row in rows.splitlines()[2:] for name in re.split("[,;]", row.split("|")[3])]
    assert named and all(name.removeprefix("class-specific ").casefold() in titles for name in named)
