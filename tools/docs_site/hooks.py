"""What MkDocs calls while it builds the site (`hooks:` in mkdocs.yml)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.docs_site import commands, interface, notebooks  # noqa: E402
from tools.docs_site.repository import Repository, site_path  # noqa: E402

OUTSIDE = ["CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "results/mini/README.md"]


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    here = Repository(ROOT)
    docs = [f"docs/{file.src_uri}" for file in files if file.src_uri.endswith((".md", ".ipynb"))]
    made = here.pages([*docs, *OUTSIDE]) | interface.pages() | {"commands.md": commands.page()}
    for path in (path for path in docs if path.endswith(".ipynb")):
        made[site_path(path)] = here.for_site(path, notebooks.page(ROOT / path), site_path(path))
    for page, text in sorted(made.items()):
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links of pages in docs/ to files elsewhere in the repository lead to those files' pages."""
    if page.file.generated_by is not None:
        return markdown
    return Repository(ROOT).for_site(f"docs/{page.file.src_uri}", markdown, page.file.src_uri)


def on_post_build(*, config: Any) -> None:
    """The pages load nothing from elsewhere, and show no path of the machine that built them."""
    loaded = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]*")
    for path in Path(config.site_dir).rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        if (found := loaded.search(text)) is not None:
            raise PluginError(f"{path} loads from elsewhere: {found[0]}")
        if str(ROOT) in text:
            raise PluginError(f"{path} shows the path {ROOT}")
