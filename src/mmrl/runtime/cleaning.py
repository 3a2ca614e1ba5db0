"""Text cleaned as open_clip's tokenizer cleans it, without the libraries that do it there.

What `ftfy` repairs is repaired here as well (entities, ligatures, full-width letters, curly quotes, control characters, composed letters),
but for text that was decoded in the wrong encoding: "schÃ¶n" stays as it is.
"""

from __future__ import annotations

import html
import html.entities
import re
import unicodedata
from functools import cache

_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
_TERMINAL = re.compile("\033\\[((?:\\d|;)*)([a-zA-Z])")
_SINGLE, _DOUBLE = re.compile("[\u02bc\u2018-\u201b]"), re.compile("[\u201c-\u201f]")
_BREAK = re.compile("\r\n|[\r\u2028\u2029\x85]")
_PAIR, _HALF = re.compile("[\ud800-\udbff][\udc00-\udfff]"), re.compile("[\ud800-\udfff]")
_CONTROL = {
    code: None
    for codes in (range(0x09), (0x0B,), range(0x0E, 0x20), (0x7F,), range(0x206A, 0x2070), (0xFEFF,), range(0xFFF9, 0xFFFD))
    for code in codes
}
_LIGATURES = "ĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬅﬆĲ"
_WIDE = range(0xFF01, 0xFFF0)
_LETTERS = (
    {ord(letter): "ſt" if letter == "ﬅ" else unicodedata.normalize("NFKC", letter) for letter in _LIGATURES}
    | {code: unicodedata.normalize("NFKC", chr(code)) for code in _WIDE}
    | {0x3000: " "}
)
_WINDOWS = {code: bytes([code]).decode("cp1252") for code in range(0x80, 0xA0) if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}


def cleaned(text: str) -> str:
    """`text` as its tokens are made of: repaired, HTML entities decoded twice, white space single, lower case."""
    found = html.unescape(html.unescape(_repaired(text)))
    return " ".join(found.split()).lower()


def _repaired(text: str) -> str:
    out, entities = [], True
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        entities = entities and "<" not in line  # then it is HTML, in which they are meant
        out.append(_line(line, entities))
    return "".join(out)


def _line(text: str, entities: bool) -> str:
    while True:
        before = text
        if entities and "<" not in text:
            text = _ENTITY.sub(_decoded, text)
        text = text.translate(_WINDOWS).translate(_LETTERS)
        text = _BREAK.sub("\n", _SINGLE.sub("'", _DOUBLE.sub('"', text)))
        text = _HALF.sub("\ufffd", _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text))
        text = unicodedata.normalize("NFC", _TERMINAL.sub("", text).translate(_CONTROL))
        if text == before:
            return text


def _decoded(match: re.Match[str]) -> str:
    """The character of an entity; one that HTML does not know stays."""
    entity = match[0]
    if not entity.startswith("&#"):
        return _entities().get(entity[1:], entity)
    found = html.unescape(entity)
    return entity if ";" in found else found


@cache
def _entities() -> dict[str, str]:
    """Characters by their names; in capitals throughout, also those that HTML has in small letters alone."""
    known = {name: letters for name, letters in html.entities.html5.items() if name.endswith(";")}
    small = {name.upper(): letters.upper() for name, letters in known.items() if name == name.lower()}
    return {name: letters for name, letters in small.items() if html.unescape(f"&{name}") == f"&{name}"} | known
