"""Learned context: what the methods share that learn words of their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mmrl.clip import ClassList, Clip, Edit, Prompts
from mmrl.clip.backbone import averaged
from mmrl.clip.text import TextHidden
from mmrl.errors import UsageError
from mmrl.methods.authors import SavedAs
from mmrl.names import check_names, spoken
from mmrl.templates import Template, fill

Position = Literal["end", "middle", "front"]  # of the class name, in the context
CONTEXT_STD = 0.02  # of random context
LEARNER = "prompt_learner"  # of the authors' code: the CoOp family saves it, alone or in the whole model
LEARNER_CONSTANTS = (f"{LEARNER}.token_prefix", f"{LEARNER}.token_suffix")  # BOT, and what stands behind the context
LEARNER_ALONE = SavedAs(module=LEARNER, constant=LEARNER_CONSTANTS)
META_NET_LEARNER = {  # our names -> the authors', of a context with a network of two linear layers
    "ctx": f"{LEARNER}.ctx",
    **{name: f"{LEARNER}.{name}" for i in (1, 2) for name in (f"meta_net.linear{i}.weight", f"meta_net.linear{i}.bias")},
}
MOST_WORDS = 4  # of a longer context the authors' MaPLe and PromptSRC start none from words, and write none in front of the name


def context_of(clip: Clip, text: str, tokens: int | None = None) -> Tensor:
    """Embeddings (n, d) of the words of `text`, without positions; the first `tokens` of them.

    Raises:
        UsageError: it has fewer.
    """
    ids, end = clip.tokenize([text])
    count = int(end[0]) - 1
    if not 1 <= (tokens or count) <= count:
        raise UsageError(f"ctx_init is '{text}', which has {count} tokens, and n_ctx is {tokens}; give a longer text or a smaller n_ctx.")
    with torch.no_grad():
        return clip.text.words(ids[0, 1 : 1 + (tokens or count)]).clone()


def random_context(*shape: int) -> Tensor:
    """N(0, 0.02^2)."""
    return torch.randn(*shape) * CONTEXT_STD


def context_texts(names: Sequence[str], tokens: int, *, after: str = "") -> list[str]:
    """Prompts 'X X X name.' with `tokens` places for context, then the words `after`, if any."""
    return fill(" ".join(["X"] * tokens + ([after] if after else []) + ["{}."]), names)


def context_edit(clip: Clip, context: Tensor) -> Edit:
    """Context (..., n, d) at positions 1 to n of the prompts that enter layer 0."""
    return Edit(tokens=context + clip.text.positions[1 : 1 + context.shape[-2]])


def with_prompts(
    clip: Clip,
    names: Sequence[str],
    template: Template | Sequence[str],
    texts: Sequence[str],
    *,
    start: int = 0,
    slots: int = 0,
    readers: int = 0,
    memory_gib: float | None = None,
) -> ClassList:
    """A class list whose own prompts are `texts`, run up to layer `start`; its zero-shot features are those of the data set's `template`.

    Args:
        slots: places for context behind BOT.
        readers: tokens of the method that read each prompt.

    Raises:
        UsageError: as `Clip.class_list`.
    """
    checked = check_names(names)
    prompts = clip.prompts(texts, len(checked), start=start, slots=slots, readers=readers, memory_gib=memory_gib)
    return replace(clip.class_list(checked, template), prompts=prompts)


def with_teacher(
    clip: Clip,
    classes: ClassList,
    template: Template | Sequence[str],
    teacher: Template | Sequence[str] | None,
    *,
    underscores: bool = False,
) -> ClassList:
    """`classes`, held to the frozen features of the prompt `teacher`; None is the data set's own `template`, and gives the zero-shot ones.

    Args:
        underscores: whether they stay in the names.
    """
    texts = fill(template if teacher is None else teacher, classes.names, underscores=underscores)
    if texts == fill(template, classes.names):
        return classes
    return replace(classes, teacher=averaged(clip.encode_text(texts), len(classes)))


def prompts_of(prompts: Prompts, rows: Tensor) -> Prompts:
    """The prompts (n) of the classes `rows` (n,) alone, of prompts of one template that begin alike."""
    numbers, hidden = rows.tolist(), prompts.hidden._replace(body=prompts.hidden.body[rows])
    texts, lengths = tuple(prompts.texts[i] for i in numbers), tuple(prompts.lengths[i] for i in numbers)
    return replace(prompts, texts=texts, classes=len(texts), hidden=hidden, end=prompts.end[rows], lengths=lengths)


@dataclass(frozen=True)
class Arranged(Prompts):
    """Prompts with context among or behind the words of the class: `slot` (C, T) is the context token at each place of the body, or -1."""

    slot: Tensor | None = None


def arranged(clip: Clip, classes: ClassList, tokens: int, *, ahead: int) -> ClassList:
    """A class list of `context_texts` whose class names stand behind `ahead` of the context tokens. Only BOT is shared then."""
    prompts = classes.fed
    ids, end = clip.tokenize(prompts.texts)
    length = int(end.max()) + 1
    words = [int(e) - 1 for e in clip.tokenize([spoken(name) for name in classes.names])[1]]
    orders = []
    for count in words:  # of each place of the new prompt, where its token stood in 'BOT X X X name .'
        name, rest = range(1 + tokens, 1 + tokens + count), range(1 + tokens + count, length)
        orders.append([0, *range(1, 1 + ahead), *name, *range(1 + ahead, 1 + tokens), *rest])
    order = torch.tensor(orders, device=ids.device)  # (C, length)
    x = clip.text.words(ids.gather(1, order)) + clip.text.positions[:length]
    slot = torch.where((order >= 1) & (order <= tokens), order - 1, -1)[:, 1:]
    hidden = TextHidden(x[:1, :1], x[:, 1:])
    lengths = tuple(end.tolist())  # without BOT
    return replace(classes, prompts=Arranged(prompts.texts, prompts.classes, 0, hidden, end - 1, lengths, prompts.chunk, slot))


def context_class_list(
    clip: Clip,
    names: Sequence[str],
    template: Template | Sequence[str],
    tokens: int,
    *,
    position: Position = "end",
    memory_gib: float | None = None,
) -> ClassList:
    """A class list with prompts of `tokens` context tokens and the class name behind them, in their middle, or in front."""
    classes = with_prompts(clip, names, template, context_texts(names, tokens), slots=tokens, memory_gib=memory_gib)
    return classes if position == "end" else arranged(clip, classes, tokens, ahead=tokens // 2 if position == "middle" else 0)


def encode_context(clip: Clip, prompts: Prompts, context: Tensor, *, normalise: bool = True) -> Tensor:
    """Class features (C, embed_dim) of prompts with `context` (n, d), or (C, n, d) with one for each class; (S, C, embed_dim) with S sets
    of it (S, 1 or C, n, d)."""
    if not isinstance(prompts, Arranged):
        return clip.encode_prompts(prompts, {0: context_edit(clip, context)}, normalise=normalise)
    assert prompts.slot is not None
    slot, (count, length), d = prompts.slot, prompts.slot.shape, context.shape[-1]
    sets = context.reshape(-1, context.shape[-3] if context.dim() > 2 else 1, *context.shape[-2:])  # (S, 1 or C, n, d)
    at = slot.clamp_min(0).unsqueeze(-1).expand(len(sets), -1, -1, d)  # (S, C, T, d)
    own = sets.expand(-1, count, -1, -1).gather(2, at) + clip.text.positions[1 : 1 + length]
    body = torch.where(slot.unsqueeze(-1) >= 0, own, prompts.hidden.body).flatten(0, 1)  # (S * C, T, d)
    end, lengths = prompts.end.repeat(len(sets)), prompts.lengths * len(sets)
    filled = replace(prompts, classes=len(body), hidden=prompts.hidden._replace(body=body), end=end, lengths=lengths)
    features = clip.encode_prompts(filled, normalise=normalise)
    return features.unflatten(0, (len(sets), count)) if context.dim() == 4 else features
