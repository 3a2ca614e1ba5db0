"""Prompt templates: text with one `{}` for the class name. Of several, class features are the mean."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.errors import UsageError, shortened
from mmrl.names import spoken

Template = str | tuple[str, ...]
DEFAULT_TEMPLATE = "a photo of a {}."
LONGEST_PROMPT = 2000  # letters: 77 tokens have some 300, and making tokens of one long word takes the square of its length
MOST_TEMPLATES = 1000  # CLIP's authors average 80


def check_template(template: str | Sequence[str], *, of: str = "") -> Template:
    """`template` as one string, or as a tuple of several.

    Args:
        of: whose it is, for the message.

    Raises:
        UsageError: there is none, or more than 1000, one has not exactly one `{}` or is not UTF-8, or one stands twice.
    """
    found = template_list(template)
    if not found:
        raise UsageError(f"there is no prompt template{of}; give at least one, for example '{DEFAULT_TEMPLATE}'")
    if len(found) > MOST_TEMPLATES:
        raise UsageError(f"there are {len(found):,} prompt templates{of}; at most {MOST_TEMPLATES:,} can be averaged.")
    for i, one in enumerate(found):
        if not isinstance(one, str) or one.count("{}") != 1:
            raise UsageError(
                f"the prompt template {one!r}{of} must have exactly one {{}}, for the class name; for example '{DEFAULT_TEMPLATE}'"
            )
        if not one.isascii() and any("\ud800" <= letter <= "\udfff" for letter in one):
            raise UsageError(f"the prompt template {one!a}{of} is not UTF-8: no file could hold it. Write it in UTF-8.")
        if one in found[:i]:
            raise UsageError(f"the prompt template '{one}'{of} stands twice; each counts once.")
    return found if len(found) > 1 else found[0]


def template_list(template: str | Sequence[str]) -> tuple[str, ...]:
    """The templates, one or several, as a tuple."""
    return (template,) if isinstance(template, str) else tuple(template)


def fill(template: str | Sequence[str], names: Sequence[str], *, underscores: bool = False) -> list[str]:
    """Prompts of `names` as they are spoken (`mmrl.names.spoken`, also for `underscores`), template by template.

    Raises:
        UsageError: as `check_template`, or a prompt is longer than any that a CLIP reads.
    """
    prompts = []
    for one in template_list(check_template(template)):
        for name in names:
            said = spoken(name, underscores=underscores)
            if len(one) + len(said) > LONGEST_PROMPT:
                raise UsageError(
                    f"the class name '{shortened(name, 100)}' in the template '{shortened(one, 100)}' makes a prompt of more than "
                    f"{LONGEST_PROMPT:,} letters, which no CLIP reads. Shorten the class name or the template."
                )
            prompts.append(one.replace("{}", said))
    return prompts
