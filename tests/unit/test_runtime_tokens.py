"""The runtime's tokenizer gives open_clip's ids, and its cleaning what ftfy makes of text, but for text in a wrong encoding."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import ftfy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

from mmrl import MmrlError
from mmrl.clip.vocabulary import vocabulary_file
from mmrl.runtime.cleaning import cleaned
from mmrl.runtime.tokenizer import Tokenizer

ODD = (
    "'s", "'LL", "’ve", "'ſ", "“x”", "ﬁ", "ﬀ", "ŉ", "Ǳ", "ſ", "İ", "ß", "²", "½", "Ⅳ", "٣", "\u0345",
    "e\u0301", "Ａ", "ｱ", "\u3000", "\x85", "\x91",
    "\u2028", "\r\n", "\x1b[31m", "\ufeff", "&amp;", "&amp;lt;", "&EACUTE;", "&#65;", "&#x41;", "&#1;", "&eacute", "&nope;", "<", ";",
    "<start_of_text>", "<end_of_text>", "a photo of a ", "\ud83d\ude00", "\ud800", " ",
)  # fmt: skip
LETTERS = st.characters(exclude_categories=("Cs", "Cn", "Co"))
TEXTS = st.lists(st.one_of(st.sampled_from(ODD), LETTERS, st.text(max_size=6, alphabet=st.characters(max_codepoint=127)))).map("".join)
clean = get_clean_fn("lower")


@pytest.fixture(scope="module")
def theirs() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.fixture(scope="module")
def ours(theirs: SimpleTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "merges.gz"
    content = vocabulary_file(theirs)
    assert content is not None
    path.write_bytes(content)
    return Tokenizer.read(path, "a backbone", 77)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_ids_are_open_clips(theirs: SimpleTokenizer, ours: Tokenizer, text: str) -> None:
    assume(ftfy.fix_text(text, fix_encoding=False) == ftfy.fix_text(text))  # what is left out, docs/export.md says
    assume(all(unicodedata.category(letter) != "Cn" for letter in text))
    assert cleaned(text) == clean(text)
    assert ours._wide([text])[0].tolist() == theirs(text, context_length=308)[0].tolist()


@pytest.mark.parametrize("name", ["red panda", "Boeing 737-800", "rock'n'roll", "crème brûlée", "犬", "🐼 bear", "a/b (c)", "the 80's", ""])
def test_names_and_lengths(theirs: SimpleTokenizer, ours: Tokenizer, name: str) -> None:
    prompt = f"a photo of a {name}."
    assert ours.tokens([prompt])[0].tolist() == theirs(prompt)[0].tolist()
    assert ours.lengths([prompt, "a " * 500]) == [int((theirs(prompt) > 0).sum()), 4 * 77]


def test_text_in_a_wrong_encoding_stays(theirs: SimpleTokenizer, ours: Tokenizer) -> None:
    assert cleaned("schÃ¶n") == "schã¶n" and clean("schÃ¶n") == "schön"


def test_other_tokenizers_have_no_file() -> None:
    assert vocabulary_file(lambda texts: None) is None
    assert vocabulary_file(SimpleTokenizer(clean="canonicalize")) is None and vocabulary_file(SimpleTokenizer(clean="whitespace")) is None
    assert vocabulary_file(SimpleTokenizer(additional_special_tokens=["<x>"])) is None


def test_a_file_that_holds_no_merges(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no gzip")
    with pytest.raises(MmrlError, match="no file of merges"):
        Tokenizer.read(tmp_path / "x", "a backbone", 77)
