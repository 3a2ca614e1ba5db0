"""Prompt templates: text with one `{}` for the class name. Of several, class features are the mean."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.errors import UsageError
from mmrl.names import spoken

Template = str | tuple[str, ...]
DEFAULT_TEMPLATE = "a photo of a {}."


def check_template(template: str | Sequence[str], *, of: str = "") -> Template:
    """`template` as one string, or as a tuple of several.

    Args:
        of: whose it is, for the message.

    Raises:
        UsageError: there is none, one has not exactly one `{}`, or one stands twice.
    """
    found = template_list(template)
    if not found:
        raise UsageError(f"there is no prompt template{of}; give at least one, for example '{DEFAULT_TEMPLATE}'")
    for i, one in enumerate(found):
        if not isinstance(one, str) or one.count("{}") != 1:
            raise UsageError(
                f"the prompt template {one!r}{of} must have exactly one {{}}, for the class name; for example '{DEFAULT_TEMPLATE}'"
            )
        if one in found[:i]:
            raise UsageError(f"the prompt template '{one}'{of} stands twice; each counts once.")
    return found if len(found) > 1 else found[0]


def template_list(template: str | Sequence[str]) -> tuple[str, ...]:
    """The templates, one or several, as a tuple."""
    return (template,) if isinstance(template, str) else tuple(template)


def fill(template: str | Sequence[str], names: Sequence[str]) -> list[str]:
    """Prompts of `names` as they are spoken (`mmrl.names.spoken`), template by template.

    Raises:
        UsageError: as `check_template`.
    """
    return [one.replace("{}", spoken(name)) for one in template_list(check_template(template)) for name in names]
