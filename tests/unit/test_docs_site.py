"""The documentation's sources: links lead somewhere, every page has its place, notebooks are clean, links change as the site needs them.
`make docs` builds the site itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tools.docs_site import commands, repository
from tools.docs_site.repository import Repository

ROOT = Path(__file__).parents[2]
HERE = Repository(ROOT)
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "results/mini/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
BOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def anchors(text: str) -> set[str]:
    return {repository.slug(head) for prose, piece in repository.outside_code(text) if prose for head in re.findall(r"(?m)^#+ (.+)", piece)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_a_file_and_a_heading_in_the_repository(page: str) -> None:
    text = HERE.read(page)
    for prose, piece in repository.outside_code(text):
        for _, path, anchor, _ in repository.LINK.findall(piece) if prose else []:
            target = ((ROOT / page).parent / path).resolve()
            assert target.is_file() and target.is_relative_to(ROOT), f"{page}: {path}"
            if anchor:
                assert anchor[1:] in anchors(target.read_text(encoding="utf-8")), f"{page}: {path}{anchor}"


def test_every_page_has_its_place() -> None:
    named = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]))
    assert {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} <= named
    assert {repository.site_path(f"docs/notebooks/{book.name}") for book in BOOKS} <= named


@pytest.mark.parametrize(
    ("page", "there", "link", "on_the_site"),
    [
        ("docs/plugins.md", "plugins.md", "../src/mmrl/recipes/read.py", "src/mmrl/recipes/read.py.md"),
        ("docs/plugins.md", "plugins.md", "add_dataset.md", "add_dataset.md"),
        ("docs/methods.md", "methods.md", "../CONTRIBUTING.md#add-a-method-in-ten-minutes", "add_method.md"),
        ("docs/methods.md", "methods.md", "../CONTRIBUTING.md#layout", "design.md#layout"),
        ("docs/methods.md", "methods.md", "../CONTRIBUTING.md", "design.md"),
        ("docs/index.md", "index.md", "notebooks/own_classes.ipynb", "notebooks/own_classes.md"),
        ("results/mini/README.md", "results/mini/README.md", "../../docs/trust.md#unknown", "../../trust.md#unknown"),
        ("CONTRIBUTING.md", "add_method.md", "docs/plugins.md", "plugins.md"),
        ("docs/trust.md", "trust.md", "no_such_file.md", "no_such_file.md"),
    ],
)
def test_links_on_the_site(page: str, there: str, link: str, on_the_site: str) -> None:
    assert HERE.for_site(page, f"See [this]({link}).", there) == f"See [this]({on_the_site})."
    inside_code = f"```\n[this]({link})\n```\n"
    assert HERE.for_site(page, inside_code, there) == inside_code


def test_contributing_is_two_pages_with_all_of_it() -> None:
    text = HERE.read("CONTRIBUTING.md")
    parts = repository.contributing(text)
    assert sorted("".join(parts.values()).split()) == sorted(text.replace("## Add a method", "# Add a method").split())
    assert parts[repository.ADD_A_METHOD].startswith("# Add a method") and "\n## Layout\n" in parts[repository.DESIGN]


def test_every_verb_has_a_section() -> None:
    text = commands.page()
    assert text.count("\n## mmrl ") > 15 and "## mmrl data check\n" in text
    assert "| `--shots <int range>` | Training images a class; 0 takes all. [default: 16; x>=0] |" in text


@pytest.mark.parametrize("book", BOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(book: Path) -> None:
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 4 and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert not re.search(r"/(home|root|tmp|Users)/", book.read_text(encoding="utf-8"))
