"""Pages of the site that stand elsewhere in the repository, and links that work in both places.

Pages are written for a reader of the repository: their links are paths from file to file. On the site a file of docs/ is a page of
its name; README.md is the start page; CONTRIBUTING.md becomes two pages; any other file that a page links to becomes a page of its
own, a Markdown file as it is, a source file as highlighted code. So no link leaves the site for the repository.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(`{3,}|~{3,})", re.MULTILINE)
PICTURES = {".png", ".svg", ".ipynb"}
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".cff": "yaml", ".csv": "text"}
OUTSIDE = "---\nsearch:\n  exclude: true\n---\n\n"
ADD_A_METHOD, DESIGN = "add_method.md", "design.md"
FIRST_PART = "Add a method in ten minutes"  # the section of CONTRIBUTING.md with a page of its own
NAMED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": DESIGN}


def site_path(path: str) -> str:
    """The page's file in MkDocs' terms, `plugins.md`, of a path from the repository's root, `docs/plugins.md`."""
    if path in NAMED:
        return NAMED[path]
    if path.startswith("docs/"):
        path = path.removeprefix("docs/")
    if path.endswith((".md", *PICTURES)):
        return path.removesuffix(".ipynb") + ".md" if path.endswith(".ipynb") else path
    return path + ".md"


def slug(heading: str) -> str:
    """The anchor that both GitHub and the site give a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def contributing(text: str) -> dict[str, str]:
    """CONTRIBUTING.md as two pages: how to add a method, and how the code works."""
    before, _, rest = text.partition(f"## {FIRST_PART}\n")
    inside, _, after = rest.partition("\n## ")
    assert inside and after, f"CONTRIBUTING.md has no section {FIRST_PART!r} before others"
    return {ADD_A_METHOD: f"# {FIRST_PART}\n{inside}", DESIGN: f"{before}## {after}"}


def code_page(path: Path, shown: str) -> str:
    """A source file as a page: its path, and the code."""
    language = LANGUAGES.get(path.suffix, "text")
    return f"{OUTSIDE}# {path.name}\n\n`{shown}`\n\n``````` {{ .{language} linenums=\"1\" }}\n{path.read_text(encoding='utf-8')}\n```````\n"


def outside_code(text: str) -> Iterator[tuple[bool, str]]:
    """The text in pieces, each with whether it is prose (and no fenced block of code)."""
    fence, piece = "", []
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line.lstrip())
        if mark and (not fence or mark[1].startswith(fence)):
            if fence:
                piece.append(line)
                yield False, "".join(piece)
                fence, piece = "", []
            else:
                yield True, "".join(piece)
                fence, piece = mark[1], [line]
        else:
            piece.append(line)
    yield not fence, "".join(piece)


class Repository:
    """The repository as the site sees it.

    Args:
        root: its folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._first = {slug(head) for head in re.findall(r"(?m)^#+ (.+)", contributing(self.read("CONTRIBUTING.md"))[ADD_A_METHOD])}

    def read(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")

    def targets(self, path: str, text: str) -> set[str]:
        """Files of the repository that the page `path` links to, as paths from the root."""
        found = {link[2] for prose, piece in outside_code(text) if prose for link in LINK.finditer(piece)}
        return {posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) for target in found}

    def for_site(self, path: str, text: str, page: str) -> str:
        """The page's Markdown with links between pages of the site.

        Args:
            path: of the file in the repository.
            text: its Markdown.
            page: which page of the site it becomes.
        """

        def moved(link: re.Match[str]) -> str:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[2]))
            anchor = link[3] or ""
            there = ADD_A_METHOD if target == "CONTRIBUTING.md" and anchor[1:] in self._first else site_path(target)
            if (there, anchor[1:]) == (ADD_A_METHOD, slug(FIRST_PART)):
                anchor = ""
            if not (self.root / target).is_file():
                return link[0]  # MkDocs says so
            return f"{link[1]}{posixpath.relpath(there, posixpath.dirname(page) or '.')}{anchor}{link[4]}"

        return "".join(LINK.sub(moved, piece) if prose else piece for prose, piece in outside_code(text))

    def pages(self, start: list[str]) -> dict[str, str]:
        """All pages that are not in docs/: what `start` and their links lead to, and on. Keys are pages of the site.

        Args:
            start: files of the repository, as paths from the root.
        """
        out: dict[str, str] = {}
        seen, left = set(start), list(start)
        while left:
            path = left.pop()
            if not (self.root / path).is_file() or path.endswith(tuple(PICTURES)):
                continue
            if not path.endswith(".md"):
                out[site_path(path)] = code_page(self.root / path, path)
                continue
            text = self.read(path)
            new = self.targets(path, text) - seen
            seen |= new
            left += sorted(new)
            if path == "CONTRIBUTING.md":
                out |= {page: self.for_site(path, part, page) for page, part in contributing(text).items()}
            elif not path.startswith("docs/") and path != "README.md":
                named = path in NAMED
                out[site_path(path)] = ("" if named else OUTSIDE) + self.for_site(path, text, site_path(path))
        return out
