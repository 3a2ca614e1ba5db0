"""What the documentation shows is run, page by page and in its order, on small stand-ins: photos of plain colours, an adapter of the
embedded model trained on them, and results of a small bench. What cannot be run here stands in NOT_RUN, with the reason."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.conftest import Cli

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "results/mini/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
NAMES = ("red panda", "badger", "pine marten", "stoat")

NEEDS_DATA = "trains for hours on data sets that have to be downloaded; with --mini the same command is run"
NOT_RUN = {  # start of a line, or all of a page's lines -> why it is not run here; `mmrl` commands are parsed all the same
    r"python -m venv|pip install": "installs; .ci/run does",
    r"make |\.ci/run": "runs these tests",
    r"python tools/check_golden.py": "tests/parity has the same comparison",
    r"python -m benchmarks": "minutes; tests/unit/test_benchmarks.py runs them small",
    r"mmrl bench .*--root \$DATA": NEEDS_DATA,
    r"mmrl data prepare": "needs the authors' archives; tests/unit/test_data_prepare.py makes some",
    r"mmrl bench .*--jobs 2": "tests/unit/test_plugins.py runs the page in two processes",
    r"mmrl (.*lion.coop|.*tools\.py)": "tests/unit/test_plugins.py runs the page's files",
    r"mmrl predict .*--engine ray": "starts a cluster",
    r"find /data": "a pipe of a shell; tests/unit/test_bulk_lists.py gives the same list",
    r"mmrl export": "a minute each, since programs are compared with torch; tests/unit/test_export*.py export smaller ones",
    r"mmrl app": "a page runs until it is closed; tests/unit/test_app*.py open it",
    r"mmrl serve|curl|  -d ": "a server runs until it is stopped; tests/unit/test_serve*.py ask one",
    r"mmrl export .*--to web|npm install|python -m http.server": "needs npm and a browser; tests/unit/test_export_web.py opens such a page",
    r"python -m mmrl.runtime": "tests/unit/test_export.py runs it where there is no torch",
    r"hf auth login|mmrl push|mmrl predict me/": "needs a model hub; tests/unit/test_hub.py asks a stand-in of one",
    r"results/mini/README.md: ": "hours; .ci/run checks that the results are those of this source, and makes the tables again",
}
RUN_ELSEWHERE = {  # Python of a page -> what runs it
    "CONTRIBUTING.md": "tests/unit/test_contributing.py",
    "docs/plugins.md": "tests/unit/test_plugins.py",
    "docs/add_dataset.md": "tests/unit/test_plugins.py",
    "docs/export.md": "tests/unit/test_export_web.py",
    "docs/serve.md": "tests/unit/test_client.py",
}
SMALLER = {  # what a page says -> what is run for it
    "--backbone ViT-B-16-quickgelu/openai": "--backbone tiny",
    'backbone="ViT-B-16-quickgelu/openai"': 'backbone="tiny"',
    'zero_shot("ViT-B-16-quickgelu/openai")': 'zero_shot("tiny")',
    "holdout=0.2)": "holdout=0.2, epochs=1)",
    'fit("photos", backbone="tiny")': 'fit("photos", backbone="tiny", shots=2, epochs=1)',
    "--shots 16 --out": "--shots 2 --epochs 1 --out",
    "--epochs 5": "--epochs 1",
    "--method coop --backbone tiny": "--method coop --backbone tiny --epochs 1",
    "--from-list names.txt": "--from-list list.txt",
    "--minutes 20": "--methods zero-shot,lpp --shots 2 --folds 2",
    "--methods coop,mma,gda": "--methods zero-shot,clap --shots 2 --folds 2",
    "--mini --datasets mini:digits,mini:textures,mini:objects": "--datasets photos --backbone tiny",
    "--mini --datasets mini:digits": "--datasets photos --backbone tiny",
    "--methods zero-shot,mmrl,mmrlpp": "--methods zero-shot,coop --set epochs=1",
    " --classes novel": " photos --classes novel",
    "--root $DATA": "--root data",
    "mine > mmrl": "coop > mmrl",
    "compare mine mmrl": "compare coop mmrl",
    ' --claim "mine:lr=2 > coop on accuracy in few-shot"': "",
}
MINI_SET = re.compile(r"--data mini:\w+")  # a set of drawings


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of the page's fenced blocks, in their order."""
    for block in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        yield block[2], "\n".join(line.removeprefix(block[1]) for line in block[3].replace("\\\n", " ").splitlines())


def lines(page: str) -> list[str]:
    """Commands of the page: lines of its blocks without a language, or of a shell."""
    found = [line for language, text in blocks(page) if language in ("", "bash", "sh", "console") for line in text.splitlines()]
    return [line for line in found if line.strip() and not re.match(r"\s*#", line) and "->" not in line and not line.startswith("     ")]


def why_not(page: str, line: str) -> str | None:
    """The reason not to run it, if there is one."""
    return next((why for start, why in NOT_RUN.items() if re.match(start, line) or re.match(start, f"{page}: {line}")), None)


def smaller(text: str) -> str:
    """The same on the stand-ins."""
    for shown, run in SMALLER.items():
        text = text.replace(shown, run)
    return MINI_SET.sub("--data photos --shots 2", text)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages name: photos, an adapter, results."""
    from mmrl import api

    root = tmp_path_factory.mktemp("pages")
    random = np.random.default_rng(0)
    colours = ((180, 30, 30), (30, 30, 180), (30, 160, 30), (170, 170, 30))
    for name, colour in zip(NAMES, colours, strict=True):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(np.array(colour) + random.integers(-30, 60, (40, 44, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{i}.jpg")
    for folder in ("photos_of_this_spring", "photos of another year", "trip"):
        shutil.copytree(root / "photos", root / folder)
    shutil.rmtree(root / "trip" / "pine marten")
    for at, name in enumerate(("new.jpg", "a.jpg", "b.jpg", "new/x.jpg", "new/y.jpg", "holiday/x.jpg", "holiday/y.jpg")):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / "photos" / NAMES[at % 2] / f"{at}.jpg", root / name)
    (root / "names.txt").write_text("\n".join([*NAMES, "wolverine"]), encoding="utf-8")
    (root / "list.txt").write_text("a.jpg\nb.jpg\n", encoding="utf-8")
    (root / "data").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        api.train(root / "photos", shots=2, out=root / "runs" / "animals", epochs=1, batch_size=4, progress=False)
    return root


@pytest.fixture
def folder(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stand-ins, and one stands in it."""
    shutil.copytree(stand_ins, tmp_path / "page")
    monkeypatch.chdir(tmp_path / "page")
    monkeypatch.delenv("DATA", raising=False)
    return tmp_path / "page"


@pytest.mark.parametrize("page", PAGES)
def test_every_line_is_a_command_that_is_run_or_has_a_reason(page: str) -> None:
    unknown = [line for line in lines(page) if not line.startswith("mmrl ") and why_not(page, line) is None]
    assert not unknown, "neither an mmrl command nor in NOT_RUN; a block that is no command needs a language, such as ```text"


def test_every_reason_is_needed() -> None:
    shown = [(page, line) for page in PAGES for line in lines(page)]
    for start in NOT_RUN:
        assert any(re.match(start, line) or re.match(start, f"{page}: {line}") for page, line in shown), start
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert RUN_ELSEWHERE.keys() <= {*PAGES}
    assert [shown for shown in SMALLER if shown not in text and "tiny" not in shown] == []
    assert all((ROOT / test).exists() for test in RUN_ELSEWHERE.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if any(why_not(page, line) is None for line in lines(page))])
def test_commands_run(page: str, folder: Path, cli: Cli, request: pytest.FixtureRequest) -> None:
    shown = [line for line in lines(page) if why_not(page, line) is None]
    if "results/" in (ROOT / page).read_text(encoding="utf-8"):
        shutil.copytree(request.getfixturevalue("results"), folder / "results")
    for line in shown:
        words = shlex.split(smaller(line), comments=True)[1:]
        out = Path(words[words.index("--out") + 1]) if "--out" in words else None
        if words[0] == "train" and out is not None and out.exists():
            shutil.rmtree(out)
        code, said, complained = cli(*words)
        allowed = (0, 1) if words[:2] == ["data", "check"] else (0,)  # 1: not whole, as here, where nothing is
        assert code in allowed, f"{page}: {line}\nrun as: mmrl {shlex.join(words)}\n{said}{complained}"
        assert said or complained or out, line


@pytest.fixture(scope="module")
def results(stand_ins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a small bench, under the names that pages use."""
    from mmrl.cli.main import app

    root = tmp_path_factory.mktemp("results")
    made = ["bench", "base-to-novel", "--methods", "zero-shot,coop,mmrl", "--datasets", str(stand_ins / "photos"), "--seeds", "1,2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app([*made, "--backbone", "tiny", "--set", "epochs=1", "--shots", "2", "--out", str(root / "paper")], standalone_mode=False)
    for name in ("mine", "before", "after"):
        shutil.copytree(root / "paper", root / name)
    return root


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE and "python" in dict(blocks(page))])
def test_python_runs(page: str, folder: Path, request: pytest.FixtureRequest) -> None:
    code = "\n".join(text for language, text in blocks(page) if language == "python")
    if "results/" in code:
        shutil.copytree(request.getfixturevalue("results"), folder / "results")
    code = smaller(code)
    assert "ViT-B" not in code
    Path("page.py").write_text(code if "import mmrl" in code else f"import mmrl\n{code}", encoding="utf-8")
    runpy.run_path("page.py")
