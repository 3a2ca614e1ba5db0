"""What is added from outside: the files that docs/plugins.md and docs/add_dataset.md show, every way to name one, what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from mmrl import api, methods, plugins
from mmrl.data import catalogue
from mmrl.errors import MmrlError, Notice, UsageError
from mmrl.methods import registry
from mmrl.recipes import read as recipes
from tests.unit.grids import COMMON, contents, photos
from tests.unit.test_cli_bench import Bench, mmrl  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[2]
METHOD, RECIPE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8"), re.DOTALL)
DATA, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add_dataset.md").read_text(encoding="utf-8"), re.DOTALL)
SMALLEST = COMMON[:4]
OFFSET = """
import torch, torch.nn.functional as F
from torch import nn
from mmrl.methods import TwoTower, register

@register("outside")
class Outside(TwoTower):
    def __init__(self, clip, options):
        super().__init__(clip, options)
        self.offset = nn.Parameter(torch.zeros(clip.embed_dim))

    def text_features(self, classes):
        return F.normalize(classes.zero_shot + self.offset, dim=-1)
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries and the environment are after a test what they were before it."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(catalogue, "_REGISTRY", dict(catalogue._REGISTRY))
    monkeypatch.setattr(recipes, "_added", {})
    monkeypatch.setattr(plugins, "_revisions", {})
    monkeypatch.setenv(plugins.VARIABLE, "")
    yield


@pytest.fixture
def walk(tmp_path: Path) -> list[str]:
    """The three files of the page."""
    out = []
    for name, block in (("lion_coop", METHOD), ("tools", DATA), ("values", RECIPE)):
        (tmp_path / f"{name}.py").write_text(block, encoding="utf-8")
        out += ["--plugin", str(tmp_path / f"{name}.py")]
    return out


def test_the_method_of_the_page_is_short() -> None:
    assert len([line for line in METHOD.splitlines() if line.strip()]) <= 65


def test_the_method_of_the_page_trains_by_its_optimiser_and_resumes(
    mmrl: Bench, walk: list[str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    plugins.add([walk[1]])
    quick = {"epochs": 3, "batch_size": 4, "warmup_epochs": 1}
    whole = api.train(root, method="lion-coop", shots=2, out=tmp_path / "run", progress=False, device="cpu", backbone="tiny", **quick)
    sources = {option.key: option.source for option in whole.record.trained.options}
    assert sources["ctx_init"].startswith("KaiyangZhou/CoOp") and sources["lr"].startswith("ours") and whole.record.title == "CoOp by Lion"
    start = methods.build("lion-coop", whole.method.clip, whole.method.options).state_dict()["ctx"].cpu()
    moved = (whole.method.state_dict()["ctx"].cpu() - start).abs()
    rates = [row["lr"] for row in whole.record.trained.history]
    assert len(set(rates)) == 3 and float(moved.max()) == pytest.approx(sum(rates), rel=1e-2)  # no element has moved further than by signs
    loaded = api.from_pretrained(tmp_path / "run")
    assert torch.equal(loaded.method.state_dict()["ctx"], whole.method.state_dict()["ctx"].cpu())

    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    with pytest.raises(Stopped), monkeypatch.context() as patched:
        patched.setattr("mmrl.engine.loop.Trainer._checkpoint", _then(stop))
        api.train(root, method="lion-coop", shots=2, out=tmp_path / "cut", progress=False, device="cpu", backbone="tiny", **quick)
    again = api.train(
        root, method="lion-coop", shots=2, out=tmp_path / "cut", resume=True, progress=False, device="cpu", backbone="tiny", **quick
    )
    assert torch.equal(again.method.state_dict()["ctx"], whole.method.state_dict()["ctx"])


def _then(stop):  # type: ignore[no-untyped-def]
    from mmrl.engine.loop import Trainer

    usual = Trainer._checkpoint

    def checkpoint(self: Trainer) -> None:
        usual(self)
        stop()

    return checkpoint


@pytest.mark.slow
def test_data_set_method_and_values_in_several_processes(mmrl: Bench, walk: list[str], tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "sets").mkdir()
    photos(tmp_path / "sets" / "tools")
    words = ["bench", "base-to-novel", "--datasets", "tools", "--root", tmp_path / "sets", "--methods", "coop,lion-coop", "--seeds", "1"]
    words += ["--shots", "2", *SMALLEST, "--set", "epochs=2", "--jobs", "2", "--out", tmp_path / "out", *walk]
    done = subprocess.run(
        [sys.executable, "-m", "mmrl", *map(str, words)], capture_output=True, text=True, timeout=280, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), plugins.VARIABLE: ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = {run["method"]: run["training"] for run in contents(tmp_path / "out", "runs").values()}
    assert set(runs) == {"coop", "lion-coop"} and all(run["dataset"] == "tools" for run in runs.values())
    assert runs["coop"]["template"] == "a photo of a {}, a kind of tool."
    assert {option["key"]: option["source"] for option in runs["coop"]["options"]}["lr"] == "our paper, Table 4"


def test_the_environment_and_the_option_name_the_same_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "outside.py"
    file.write_text(OFFSET)
    monkeypatch.setenv(plugins.VARIABLE, str(file))
    plugins.load()
    monkeypatch.chdir(tmp_path)
    plugins.add(["outside.py"])
    assert "outside" in methods.names() and os.environ[plugins.VARIABLE] == str(file)


def test_a_plugin_that_registers_nothing_is_fine(mmrl: Bench, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "nothing.py").write_text("")
    assert mmrl("methods", "zero-shot", f"--plugin={tmp_path / 'nothing.py'}")[0] == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x = 1\n\nx.y\n", "line 3: AttributeError: 'int' object has no attribute 'y'"),
        ("def f(:\n", "line 1: SyntaxError: "),
        ("from mmrl.errors import UsageError\nraise UsageError('first\\nsecond')", "line 2: UsageError: first"),
        ("import sys\nsys.exit(3)", "line 2: SystemExit: 3"),
        (OFFSET.replace('"outside"', '"coop"'), "ValueError: method 'coop' is registered already"),
        ("import json\n\njson.loads('{')", "line 3: JSONDecodeError: "),
    ],
)
def test_an_error_in_a_plugin_is_one_line_with_its_place(mmrl: Bench, tmp_path: Path, content: str, said: str) -> None:  # noqa: F811
    file = tmp_path / "bad.py"
    file.write_text(content)
    code, _, err = mmrl("methods", "zero-shot", "--plugin", file)
    assert code == 1 and str(file) in err and said in err and len(err.strip().splitlines()) == 1


def test_a_plugin_that_is_not_there(mmrl: Bench, tmp_path: Path) -> None:  # noqa: F811
    code, _, err = mmrl("--plugin", tmp_path / "none.py", "methods")
    assert code == 2 and "none.py does not exist; give a Python file" in err
    code, _, err = mmrl("methods", "--plugin", tmp_path)
    assert code == 2 and "is a folder" in err
    code, _, err = mmrl("methods", "--plugin")
    assert code == 2 and "--plugin names no file" in err
    with pytest.raises(UsageError, match="separates files"):
        plugins.add([f"a{os.pathsep}b.py"])


def test_an_unknown_method_hints_at_plugins(mmrl: Bench) -> None:  # noqa: F811
    code, _, err = mmrl("methods", "qqqqqqqqqq")
    assert code == 2 and "One from outside needs --plugin FILE.py, or MMRL_PLUGINS." in err
    assert "--plugin" not in mmrl("methods", "coopp")[2]


def test_an_adapter_names_the_plugin_that_it_needs(mmrl: Bench, root: Path, tmp_path: Path) -> None:  # noqa: F811
    file, out = tmp_path / "off_set.py", tmp_path / "run"
    file.write_text(OFFSET)
    plugins.add([file])
    quick = {"epochs": 1, "warmup_epochs": 0, "batch_size": 2}
    api.train(root, method="outside", shots=2, out=out, overrides=quick, progress=False, device="cpu")
    registry._REGISTRY.pop("outside")
    plugins._revisions.clear()
    photo = next(root.rglob("*.png"))
    code, _, err = mmrl("predict", out, photo)
    assert code == 2 and "the method 'outside', which is not known here: it came from the plugin file off_set.py." in err
    assert "--plugin off_set.py with any command, or MMRL_PLUGINS=off_set.py" in err and "Did you mean" not in err
    assert mmrl("predict", out, photo, "--plugin", file)[0] == 0
    registry._REGISTRY.pop("outside")
    config = out / "adapter_config.json"
    config.write_text(config.read_text().replace('"off_set.py"', '""'))
    code, _, err = mmrl("eval", out, "--data", root)
    assert code == 2 and "came from a plugin or another package. Load that: --plugin FILE.py" in err


def test_a_changed_plugin_has_other_results(tmp_path: Path, root: Path) -> None:
    from mmrl.protocols import Training
    from tests.unit.grids import smallest

    file, keys = tmp_path / "outside.py", []
    for content in (OFFSET, OFFSET, OFFSET + "# changed"):
        file.write_text(content)
        registry._REGISTRY.pop("outside", None)
        plugins._revisions.clear()
        plugins.add([file])
        keys.append(smallest().training_key(Training("outside", str(root), "base", 2, 1, "base-to-novel", (("epochs", 2),))))
    assert keys[0] == keys[1] != keys[2]
    assert not methods.get("coop").revision  # those of this package have the keys that they always had


def test_a_broken_package_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = metadata.EntryPoint("bad", "no_such_module_anywhere", "mmrl.methods")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [broken])
    with pytest.warns(Notice, match="plugin 'bad' of the package no_such_module_anywhere is left out: ModuleNotFoundError"):
        plugins.load_installed("mmrl.methods")


def test_rules_are_added_once_and_checked() -> None:
    from mmrl.engine.context import settings

    recipes.add_recipe("coop", {"rules": [{"source": "mine", "when": {"dataset": ["dtd"]}, "fit": {"lr": 0.5}}]})
    found = {setting.key: setting for setting in settings("coop", dataset="dtd").settings}
    assert (found["lr"].value, found["lr"].source) == (0.5, "mine") and found["momentum"].source.startswith("KaiyangZhou")
    assert settings("coop", dataset="eurosat").fit["lr"] == 0.002
    with pytest.raises(UsageError, match="added to the recipe of coop before"):
        recipes.add_recipe("coop", {"rules": [{"source": "mine", "when": {"dataset": ["dtd"]}, "fit": {"lr": 0.5}}]})
    recipes.add_recipe("coop", {"rules": [{"source": "mine", "fit": {"lrr": 0.5}}]})
    with pytest.raises(MmrlError, match="lrr.*Did you mean 'lr'"):
        settings("coop", dataset="dtd")


def test_every_file_that_the_page_names_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8"))
    assert links and all((ROOT / "docs" / link).resolve().exists() for link in links)
