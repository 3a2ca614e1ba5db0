"""Model cards, and the Markdown of every table: what users named is text in them, and in the examples of the card."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from mmrl.errors import MmrlError
from mmrl.reports.card import NEW, model_card
from mmrl.reports.sheets import Sheet, code, markdown, md
from tests.unit.test_reports import make

CONFIG = {"method": "mmrlpp", "title": "MMRL++", "backbone": "tiny", "class_names": ["cat", "dog"], "template": "a photo of a {}.",
          "version": "0.1.0"}  # fmt: skip
HOSTILE = (
    "$(touch x)", "a'b", "`id`", "[x](http://e.com)", "![i](x)", "http://e.com", "<script>", "a|b", "x](y", "**b**", "www.e.com", "e@f.com",
    "ftp://e.com/a|b", "<http://a b>", "[r]: http://e.com", "<!-- c", "&lt;", "a\\|b", "\\", "``", "_u_", "~~s~~", "# h", "- x", "1. x",
    "---", "===", "$x$", '"q"', "!!", "~/x", "x;y", "*", "-rf",
)  # fmt: skip
LINKED = re.compile(r"://|www\.|@", re.IGNORECASE)  # what readers make links of in plain text
READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def read(text: str) -> list[Token]:
    """The card without its front matter, or a table; text alone has no link, image or HTML, nor anything a reader would make a link of."""
    tokens = READER.parse(text.split("\n---\n", 1)[1] if text.startswith("---\n") else text)
    every = [child for token in tokens for child in (token, *(token.children or ()))]
    assert not [token for token in every if token.type.startswith(("html", "link", "image", "s_open", "em_open"))]
    assert not [token.content for token in every if token.type == "text" and LINKED.search(token.content)]
    return tokens


def shown(inline: Token) -> str:
    return "".join(child.content for child in inline.children or () if child.type in ("text", "code_inline"))


def cells(tokens: list[Token]) -> Iterator[list[str]]:
    """Rows of all tables."""
    inside, row = False, []
    for token in tokens:
        inside = token.type in ("td_open", "th_open") or (inside and token.type == "inline")
        if token.type == "tr_open":
            row = []
        elif token.type == "inline" and inside:
            row.append(shown(token))
        elif token.type == "tr_close":
            yield row


def fence(tokens: list[Token], language: str) -> str:
    (found,) = (token.content for token in tokens if token.type == "fence" and token.info == language)
    return found


def test_model_card_of_a_run():
    options = [{"section": "method", "key": "lam", "value": 3.0, "source": "published"}]
    card = model_card(CONFIG, make(0.8, 0.55, method="mmrlpp", options=options, commit="0123456789abcdef", dirty=True))
    assert card.startswith("---\nlibrary_name: mmrl\n") and '\n- "mmrlpp"\n---\n' in card
    assert "# MMRL++ for tiny on mini:digits" in card
    assert "| base | 40.00 | 80.00 |" in card and "| novel | 60.00 | 55.00 |" in card and "| harmonic mean | 48.00 | 65.19 |" in card
    assert "**Below zero-shot on novel:**" in card and "Below zero-shot on base" not in card
    assert "| lam | 3.0 | published |" in card and "`0123456789ab` with changes" in card
    assert "{{" not in card and "{%" not in card and "\n\n\n" not in card


def test_model_card_without_a_run():
    card = model_card(CONFIG | {"options": {"lam": 1.0, "first_layer": None}})
    assert "Not measured yet" in card and ["first_layer", "none"] in list(cells(read(card))) and "seed" not in card
    assert "{{" not in card and "\n\n\n" not in card
    with pytest.raises(MmrlError, match="no backbone, version"):
        model_card({key: value for key, value in CONFIG.items() if key not in ("backbone", "version")})


def test_the_card_of_zero_shot_has_no_training():
    record = make(0.8, 0.6, method="zero-shot").model_copy(update={"training": None})
    card = model_card(CONFIG | {"method": "zero-shot", "title": "zero-shot CLIP"}, record)
    assert "# zero-shot CLIP for tiny\n" in card and "seed" not in card and "| base | 40.00 | 80.00 |" in card


def test_a_method_without_a_title_goes_by_its_name():
    assert "# ours for tiny" in model_card({key: value for key, value in CONFIG.items() if key != "title"} | {"method": "ours"})


def test_a_closed_vocabulary_is_said():
    closed, opened = model_card(CONFIG | {"open_vocabulary": False}), model_card(CONFIG)
    assert NEW not in closed and "among the classes it was trained on" in closed and "the trained ones and others" not in closed
    assert NEW in opened and "the trained ones and others" in opened
    assert fence(read(closed), "sh") == "mmrl predict FOLDER photo.jpg --classes cat,dog\n"


def test_class_names_are_text_in_the_card():
    tokens = read(model_card(CONFIG | {"class_names": HOSTILE}))
    assert shown(tokens[-2]) == ", ".join(HOSTILE) and tokens[-3].type == "paragraph_open"
    assert read(model_card(CONFIG | {"class_names": ["line\nbreak\u2028here"]}))[-2].content == "line break here"


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_user_named_is_text_in_the_card(name: str):
    option = {"section": "method", "key": name, "value": name, "source": name}
    config = CONFIG | {"backbone": name, "template": (f"{name} {{}}", "{} | `x`"), "version": name, "method": name, "title": name}
    for title in (None, name):
        record = make(0.8, 0.6, dataset=name, options=[option], commit=name[:12], draw_hash=name)
        tokens = read(model_card(config, record, title=title))
        rows = list(cells(tokens))
        assert ["backbone", name] in rows and ["hash of the draw", name] in rows and [name] * 3 in rows and ["mmrl", name] in rows
        assert ["data", f"{name}, classes: base"] in rows and ["prompt, averaged", f"{name} {{}}"] in rows
        assert ["prompt, averaged", "{} | `x`"] in rows and ["commit", name[:12].strip()] in rows
        headings = [shown(inline) for opened, inline in itertools.pairwise(tokens) if opened.type == "heading_open"]
        assert headings == [title or f"{name} for {name} on {name}", "Use", "Training", "Scores", "Trust", "Limits", "Trained classes"]


def test_a_method_of_any_name_is_one_tag():
    card = model_card(CONFIG | {"method": "a: [b]\n- c"})
    assert card.split("\n---\n")[0].splitlines()[-2:] == ["- few-shot", '- "a: [b]\\n- c"']


@pytest.mark.parametrize("name", HOSTILE)
def test_the_shell_takes_every_name_as_it_is(name: str, tmp_path: Path):
    line = fence(read(model_card(CONFIG | {"class_names": [name, "dog"]})), "sh")
    assert line.startswith("mmrl predict FOLDER photo.jpg --classes ") and line.count("\n") == 1
    assert subprocess.run(["sh", "-n"], input=line, text=True, check=False, timeout=30).returncode == 0
    script = line.replace("mmrl", "printf '%s\\n'", 1)
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout.splitlines() == ["predict", "FOLDER", "photo.jpg", "--classes", f"{name},dog,{NEW}"]
    assert done.returncode == 0 and not done.stderr and not list(tmp_path.iterdir())


def test_names_that_the_command_cannot_tell_are_left_out():
    names = ["salt, pepper", "two\nlines", "\x1b[31m", " led", "", "cat", "dog", "cow"]
    tokens = read(model_card(CONFIG | {"class_names": names}))
    assert fence(tokens, "sh").endswith(f" --classes 'cat,dog,{NEW}'\n")


@pytest.mark.parametrize("name", [*HOSTILE, "two\nlines", "salt, pepper", "\x1b[31m", "\u202eabc"])
def test_python_takes_every_name_as_it_is(name: str):
    tree = ast.parse(fence(read(model_card(CONFIG | {"class_names": [name, "dog", "cow"]})), "python"))
    (classes,) = (word.value for call in ast.walk(tree) if isinstance(call, ast.Call) for word in call.keywords if word.arg == "classes")
    assert ast.literal_eval(classes) == [name, "dog", NEW]


def test_names_are_text_in_tables():
    for i, name in enumerate(HOSTILE):
        sheet = Sheet(f"t{i}", name, (name, "x"), ((name, 1), ("b", name)), (name, f"it is {name}"))
        tokens = read(markdown(sheet))
        assert list(cells(tokens)) == [[name, "x"], [name, "1"], ["b", name]]
        assert shown(tokens[1]) == name and tokens[0].tag == "h1"
        assert shown(tokens[-2]) == f"{name}it is {name}" and tokens[-3].type == "paragraph_open"


MARKS = " |`\\*_[]<>&!#~$-+=.)1@:/w"


@given(st.text(st.sampled_from(MARKS) | st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_text_reads_as_it_is_written(text: str):
    plain = re.sub(" +", " ", text).strip()
    for line, wanted in ((md(text), plain), (f"x{md(text)}", f"x{plain}"), (f"x {code(text)}", f"x {plain}".strip())):
        assert [shown(token) for token in read(line) if token.type == "inline"] == ([wanted] if wanted else [])
    table = read(f"| a | b |\n| --- | --- |\n| {md(text)} | {code(text)} |\n")
    assert list(cells(table)) == [["a", "b"], [plain, plain]]
