"""The calibration that an export brings along: the numbers of `mmrl.trust.state.Trust`, without the library that checks those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.errors import MmrlError
from mmrl.names import name_key
from mmrl.templates import Template, check_template, template_list
from mmrl.trust.arrays import line, positive
from mmrl.trust.conformal import conformal_quantile
from mmrl.trust.rejection import SCORES, checked_score, threshold_at_recall


@dataclass(frozen=True)
class Calibration:
    """Fields as of `Trust`."""

    classes: tuple[str, ...]
    template: Template
    temperature: float
    scores: Mapping[str, tuple[float, ...]]
    nonconformity: Mapping[str, tuple[float, ...]]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Calibration:
        """Raises MmrlError where `content` is none."""
        try:
            kinds = (content[kind].items() for kind in ("scores", "nonconformity"))
            scores, sets = ({name: tuple(line(each, what=name)) for name, each in kind} for kind in kinds)
            if set(scores) != set(SCORES):
                raise ValueError(f"its scores are {', '.join(scores)}")
            template = check_template(content["template"])
            temperature = positive(content["temperature"], what="the temperature")
            return cls(tuple(str(name) for name in content["classes"]), template, temperature, scores, sets)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise MmrlError(f"the calibration in the export is damaged: {error!r}. Export again.") from error

    def holds_for(self, names: Sequence[str], template: Template, /) -> bool:
        same = {name_key(name) for name in names} == {name_key(name) for name in self.classes}
        return same and template_list(template) == template_list(self.template)

    def threshold(self, score: str, recall: float, /) -> float:
        return threshold_at_recall(self.scores[checked_score(score)], recall)

    def quantile(self, method: str, coverage: float, /) -> float:
        return conformal_quantile(self.nonconformity[method], coverage)
