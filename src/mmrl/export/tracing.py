"""Programs of tensors, which `torch.export` makes of a method: its towers with all that it changes in them, and nothing of its Python.

A text program takes token ids in place of prompts. `TracedClip` stands in for the frozen CLIP while a method builds its class list: it
notes which prompts the method asks for, and hands out the ids that the program is given for them. So what a method feeds its text tower
is traced as the method does it, whichever method it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.clip import ClassList, Clip, Prompts
from mmrl.clip.backbone import averaged
from mmrl.clip.text import TextHidden
from mmrl.errors import UsageError, first_line
from mmrl.export.quiet import quiet
from mmrl.methods import Method, TwoTower
from mmrl.names import check_names
from mmrl.templates import Template, fill

NAMES = ("qzjx_a", "qzjx_b")  # of classes while a program is traced: no word of a template is like them
_OTHERS = ("a red one", "blue")


@dataclass(frozen=True)
class PromptGroup:
    """Prompts that a text program needs of each class, one for each of the templates.

    Attributes:
        templates: each with one {} for the name.
        underscores: whether they stay in the name.
    """

    templates: tuple[str, ...]
    underscores: bool = False

    def texts(self, names: Sequence[str]) -> list[str]:
        """The prompts (T * C), those of the first template first."""
        return fill(self.templates, names, underscores=self.underscores)


class TracedClip(Clip):
    """The same frozen CLIP, whose prompts' token ids may be given. Prompts are run whole: the numbers are those of the shorter ones.

    Attributes:
        asked: groups of prompts that were asked for, in their order.
        given: token ids (T, C, context) of each; those of the prompts themselves where it is None, or has None.
    """

    frozen_chunk = None

    def __init__(self, clip: Clip) -> None:
        self.__dict__.update(clip.__dict__)
        self.asked: list[tuple[str, ...]] = []
        self.given: Sequence[Tensor | None] = ()
        self._plain: dict[tuple[str, ...], Tensor] = {}

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        texts = tuple(prompts)
        if texts not in self.asked:
            self.asked.append(texts)
        number = self.asked.index(texts)
        given = self.given[number] if number < len(self.given) else None
        if given is None and texts not in self._plain:
            self._plain[texts] = self.plain_tokens(texts)  # before a program is traced, which can look at no number
        tokens = self._plain[texts] if given is None else given.flatten(0, 1)
        return tokens, self.ends(tokens)

    def plain_tokens(self, prompts: Sequence[str]) -> Tensor:
        """The token ids (C, context) of `prompts` themselves."""
        return super().tokenize(prompts)[0]

    def prompts(
        self, texts: Sequence[str], classes: int | None = None, *, start: int = 0, slots: int = 0, readers: int = 0,
        memory_gib: float | None = None,
    ) -> Prompts:  # fmt: skip
        tokens, end = self.tokenize(texts)
        x, shared = self.text.words(tokens) + self.text.positions[: tokens.shape[1]], 1 + slots
        entered, keys = self.text.run_prefix(TextHidden(x[:1, :shared], x[:, shared:], slots), 0, start)
        hidden = entered._replace(body=self.text.run_body(x[:, shared:], None, keys))
        count = tokens.shape[0] // (len(texts) // (classes or len(texts)))
        return Prompts(tuple(texts), count, start, hidden, end - shared, (tokens.shape[1] - shared,))

    def encode_text(self, texts: Sequence[str], *, normalise: bool = True) -> Tensor:
        return self._encoded(texts, normalise=normalise)

    def class_list(
        self, names: Sequence[str], template: str | Sequence[str], *, start: int = 0, memory_gib: float | None = None
    ) -> ClassList:
        checked = check_names(names)
        texts = fill(template, checked)
        if self.not_staged is not None:
            features = self.encode_text(texts)
            return ClassList(checked, averaged(features, features.shape[0] // (len(texts) // len(checked))))
        prompts = self.prompts(texts, len(checked), start=start)
        return ClassList(checked, self.encode_prompts(prompts), prompts)


class ImageProgram(nn.Module):
    """Pixels (B, 3, H, W) -> image features of length 1 (B, embed_dim): the class token's and, where there are some, the representation
    tokens'."""

    def __init__(self, method: TwoTower) -> None:
        super().__init__()
        self.method, self.model = method, method.clip.model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        found = self.method.image_features(pixels)
        return (found.class_token,) if found.representation is None else (found.class_token, found.representation)


class LogitsProgram(nn.Module):
    """Pixels (B, 3, H, W) -> image features (B, embed_dim) and logits (B, C) among the classes of `head`, all of them trained."""

    def __init__(self, method: Method, head: Any) -> None:
        super().__init__()
        self.method, self.model, self.head = method, method.clip.model, head

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.method, TwoTower):
            features = self.method.image_features(pixels).class_token
        else:
            features = self.method.clip.encode_image(pixels)
        return features, self.method.logits(pixels, self.head, True)


class TextProgram(nn.Module):
    """Token ids (T, C, context) of each group of prompts -> class features (C, embed_dim)."""

    def __init__(self, method: TwoTower, traced: TracedClip, template: Template, used: Sequence[int]) -> None:
        super().__init__()
        self.method, self.model = method, method.clip.model
        self.traced, self.template, self.used = traced, template, tuple(used)

    def forward(self, *tokens: Tensor) -> Tensor:
        given: list[Tensor | None] = [None] * len(self.traced.asked)
        for number, each in zip(self.used, tokens):
            given[number] = each
        self.traced.given = given
        with standing_in(self.method, self.traced):
            return self.method.text_features(self.method.class_list(NAMES, self.template))


@contextmanager
def standing_in(method: Method, clip: Clip) -> Iterator[None]:
    """While it lasts, `method` works with `clip`."""
    before = method.clip
    method.clip = clip
    try:
        yield
    finally:
        method.clip = before


def text_program(method: TwoTower, template: Template) -> tuple[TextProgram, list[PromptGroup]]:
    """A program for the class features of new names, and the prompts that it takes.

    Raises:
        UsageError: the method has prompts that are no templates with a name in them.
    """
    traced = TracedClip(method.clip)
    with standing_in(method, traced):
        plain = method.text_features(method.class_list(NAMES, template))
        asked = list(traced.asked)
        groups = [_group(texts) for texts in asked]
        used = []
        for number, group in enumerate(groups):
            ids = traced.plain_tokens(group.texts(_OTHERS))
            traced.given = [ids.unflatten(0, (-1, len(NAMES))) if at == number else None for at in range(len(groups))]
            if not torch.equal(plain, method.text_features(method.class_list(NAMES, template))):
                used.append(number)
    if traced.asked != asked:
        raise UsageError(f"the prompts of method '{method.name}' depend on more than the names.")
    return TextProgram(method, traced, template, used), [groups[number] for number in used]


def _group(texts: Sequence[str]) -> PromptGroup:
    """The templates that made `texts` of `NAMES`."""
    for underscores in (False, True):
        name = NAMES[0] if underscores else NAMES[0].replace("_", " ")
        templates = tuple(text.replace(name, "{}") for text in texts[:: len(NAMES)])  # template by template
        if all(each.count("{}") == 1 for each in templates):
            group = PromptGroup(templates, underscores)
            if group.texts(NAMES) == list(texts):
                return group
    raise UsageError(f"the prompt '{texts[0]}' is no template with a class name in it.")


def traced(program: nn.Module, example: Sequence[Tensor], sizes: Sequence[int], name: str) -> torch.export.ExportedProgram:
    """The exported program of a module, whose inputs may have any size in one dimension.

    Args:
        example: inputs; the size in that dimension is at least 2.
        sizes: which dimension that is, of each input.
        name: of the size.

    Raises:
        UsageError: the program depends on the numbers in its inputs, or its size is fixed.
    """
    size = torch.export.Dim(name)
    shapes: Any = tuple({at: size} for at in sizes)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(program.eval(), tuple(example), dynamic_shapes=_shapes_of(program, shapes), strict=False)
    except Exception as error:  # torch has many kinds of its own for it
        text, method = isinstance(program, TextProgram), getattr(program.method, "name", "")
        what, fix = ("text tower", " Leave it out: --no-text, in Python text=False.") if text else ("image tower", "")
        raise UsageError(f"the {what} of method '{method}' cannot be exported: {first_line(error).rstrip('.')}.{fix}") from error


def _shapes_of(program: nn.Module, shapes: Any) -> Any:
    """Shapes as `torch.export` wants them: those of `*tokens` are one argument."""
    return (shapes,) if isinstance(program, TextProgram) else shapes
