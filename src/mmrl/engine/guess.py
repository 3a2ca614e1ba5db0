"""Which method a checkpoint of the authors' code is of, told by the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from mmrl.errors import UsageError
from mmrl.methods import Method
from mmrl.methods.authors import SavedAs, layer_names

TOWERS = ("image_encoder", "text_encoder", "logit_scale")  # of the whole CLIP that the authors' checkpoints may have beside their own


def whole_names(method: type[Method], names: Collection[str]) -> dict[str, str]:
    """Names of the authors' whole model -> `names`, which may be of the part of it that they save alone."""
    part = f"{_saved(method).module}."
    lacks = part != "." and not any(name.startswith(part) for name in names)
    return {part + name if lacks else name: name for name in names}


def guess_method(
    tensors: Collection[str], methods: Mapping[str, type[Method]], fits: Callable[[type[Method]], bool] = lambda method: True
) -> type[Method]:
    """The method whose tensors these are: of those that find all of theirs and leave none over, the one that has most.

    Args:
        fits: asked where several have as many, whether a method's sizes are those of the tensors.

    Raises:
        UsageError: none of them, or several alike.
    """
    found: dict[str, int] = {}
    strange: dict[str, str] = {}  # method -> a tensor that it does not have
    for name, method in methods.items():
        whole = whole_names(method, tensors)
        own = _own_names(method, whole)
        others = [one for one in whole if one not in own and not _constant(method, one)]
        if own and others:
            strange[name] = whole[others[0]]
        elif own:
            found[name] = len(own)
    if not found:
        known = [name for name, method in methods.items() if method.authors_names]
        beside = "".join(f" Beside the tensors of {name} it has '{other}', of something else." for name, other in list(strange.items())[:1])
        raise UsageError(f"the checkpoint holds none of the methods that can be imported ({', '.join(known)}).{beside}")
    alike = [name for name, count in found.items() if count == max(found.values())]
    best = [name for name in alike if fits(methods[name])] or alike if len(alike) > 1 else alike
    if len(best) > 1:
        raise UsageError(f"the checkpoint may be of {' or '.join(best)}, whose tensors have the same names; say which (--method).")
    return methods[best[0]]


def _saved(method: type[Method]) -> SavedAs:
    return method.saved_as or SavedAs()


def _own_names(method: type[Method], tensors: Collection[str]) -> set[str]:
    """The names among `tensors` that are of `method`; none where it lacks one that it must have."""
    saved = _saved(method)
    patterns = dict.fromkeys(saved.patterns, True) or {
        theirs: ours in saved.optional for ours, theirs in method.authors_names.items()
    }  # -> whether it may be lacking
    own = set[str]()
    for pattern, names in layer_names(patterns, tensors).items():
        there = {name for name in names if name in tensors}
        if len(there) < len(names) and (there or not patterns[pattern]):
            return set()
        own |= there
    return own


def _constant(method: type[Method], name: str) -> bool:
    return name.split(".")[0] in TOWERS or any(name == one or name.startswith(f"{one}.") for one in _saved(method).constant)
