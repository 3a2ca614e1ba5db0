"""What a server is told: the adapters, where they run, and how much anybody may ask of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from mmrl.errors import UsageError
from mmrl.files import user_path

PACKAGE = "mmrl"
ZERO_SHOT = "zero-shot"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """How much is accepted, held and computed at once.

    Attributes:
        body: bytes of a request's body.
        pixels: of an image, before anything of it is decoded.
        prompts: class names of a request times its prompt templates.
        images: of a request.
        queue: images that are accepted and not answered yet; above, the answer is 429.
        held: bytes of all bodies that are held at once; above, the answer is 429.
        batch: images that pass the image tower together.
        wait: seconds that a batch waits for images that are on their way.
        body_seconds: for its body.
        seconds: for its answer, from then on.
        heads, head_bytes: class lists that are kept, and their size in all.
    """

    body: int = 32 * MIB
    pixels: int = 50_000_000
    prompts: int = 1000
    images: int = 32
    queue: int = 512
    held: int = 512 * MIB
    batch: int = 64
    wait: float = 0.004
    body_seconds: float = 30.0
    seconds: float = 30.0
    heads: int = 64
    head_bytes: int = 256 * MIB

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0 or (value == 0 and name != "wait"):
                raise UsageError(f"the limit '{name}' is {value}; it must be above 0.")
        if self.images > self.queue:
            raise UsageError(f"a request may have {self.images} images, and the queue holds {self.queue}: make the queue longer.")


@dataclass(frozen=True)
class Settings:
    """All that a process of the server needs to know. It goes to worker processes as JSON.

    Attributes:
        adapters: names and places: a folder, a hub name, or 'zero-shot'.
        backbone: another name for the one that the adapters name; for zero-shot alone, which.
        device: where a process computes.
        threads: of torch on a CPU; 0 for its own choice.
        decoders: threads that decode images.
        allow_urls: whether images may be given as URLs.
        token_file: a file with the bearer token; None for the environment variable, if it is set.
        reload: seconds between looks at the adapters' folders; 0 for never.
        limits: how much may be asked.
        quiet: no line in the log for a request that went well.
    """

    adapters: tuple[tuple[str, str], ...]
    backbone: str | None = None
    device: str = "auto"
    threads: int = 0
    decoders: int = 2
    allow_urls: bool = False
    token_file: str | None = None
    reload: float = 2.0
    limits: Limits = field(default_factory=Limits)
    quiet: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        plain = json.loads(text)
        adapters = tuple((name, place) for name, place in plain.pop("adapters"))
        return cls(adapters, limits=Limits(**plain.pop("limits")), **plain)


def named_adapters(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Names and places of what a user gave: FOLDER, ORG/NAME, 'zero-shot', or NAME= before one of these.

    Raises:
        UsageError: none is given, a name cannot stand in an address, or two are the same.
    """
    if not given:
        raise UsageError("no adapter is given; give a folder, a hub name, or 'zero-shot'.")
    found: dict[str, str] = {}
    for text in given:
        name, place = _named(text)
        if not NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' cannot be the name of an adapter in an address: letters, digits, '.', '_' and '-' can. Write NAME={place}"
            )
        if name in found:
            raise UsageError(f"two adapters are called '{name}': {found[name]} and {place}. Write NAME={place} for another name.")
        found[name] = place
    return tuple(found.items())


def _named(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if equals and place and NAME.fullmatch(name) and not os.path.exists(text):
        return name, place
    if text == ZERO_SHOT:
        return ZERO_SHOT, ZERO_SHOT
    path = user_path(text)
    return path.resolve().name if os.path.exists(path) else text.rstrip("/").rpartition("/")[2], text
