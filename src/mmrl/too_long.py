"""Prompts longer than a text tower reads: which class name, how long, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from mmrl.errors import UsageError, shortened
from mmrl.names import spoken
from mmrl.templates import fill

SHORTEST = "{}."  # the template that adds the fewest tokens
QUOTED = 200  # letters of a prompt in a message


class Reader(Protocol):
    """A text tower: what it is called, how many tokens it reads, and how many each of some prompts has."""

    name: str
    context_length: int

    def lengths(self, prompts: Sequence[str], /) -> list[int]: ...


class TooLongError(UsageError):
    """A prompt is longer than the context: the longest of those asked for, which stands at `position` among them."""

    def __init__(self, clip: Reader, prompt: str, position: int, length: int) -> None:
        self.clip, self.prompt, self.position, self.length = clip, prompt, position, length
        super().__init__(f"{self.said}. Shorten the class name or the template.")

    @property
    def said(self) -> str:
        limit = self.clip.context_length
        least = "at least " if self.length >= 4 * limit else ""  # it was cut there
        over = self.length - limit
        return (
            f"the prompt '{shortened(self.prompt, QUOTED)}' has {least}{self.length} tokens; '{self.clip.name}' reads {limit}, "
            f"{least}{over} fewer"
        )

    def of(self, names: Sequence[str], template: str | Sequence[str]) -> UsageError:
        """The same error with the class name that it is about, and ways out that fit."""
        name = names[self.position % len(names)]
        said = spoken(name)
        if said not in self.prompt:
            return self
        fixes = []
        if self.prompt in fill(template, [name]) and self._fits(SHORTEST.replace("{}", said)):
            fixes.append(f"the template '{SHORTEST}' would fit")
        if shorter := self._beginning(said):
            fixes.append(f"of the name, '{shorter}' would fit")
        ways = f"A way out: {', or '.join(fixes)}." if fixes else "Shorten the class name or the template."
        return UsageError(f"class '{shortened(name, QUOTED)}' has too long a prompt: {self.said}. {ways}")

    def _fits(self, prompt: str) -> bool:
        return self.clip.lengths([prompt])[0] <= self.clip.context_length

    def _beginning(self, said: str) -> str:
        """The most words of the name, from the first, that fit in its place; '' if not even one does."""
        words = said.split()
        low, high = 0, len(words) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(self.prompt.replace(said, " ".join(words[:middle]))) else (low, middle - 1)
        return " ".join(words[:low])


@contextmanager
def naming(names: Sequence[str], template: str | Sequence[str]) -> Iterator[None]:
    """Errors about prompts that are too long name the class of `names` that it is."""
    try:
        yield
    except TooLongError as error:
        raise error.of(names, template) from error
