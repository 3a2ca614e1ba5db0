"""Every method's programs, run by torch itself, beside the method: what they are traced from gives the same logits. That ONNX Runtime
runs them alike is measured by `python -m benchmarks.export --methods`, whose table docs/export.md has."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrl import methods
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.export import export_adapter
from mmrl.export.parts import Exportable, exportable, rule_of
from mmrl.methods import TwoTower
from mmrl.runtime.manifest import FULL
from mmrl.runtime.rules import check_rule, logits_of
from tests.contract.test_contract import NAMES, TEMPLATE, make

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
OTHERS = ["dog", "a new_thing", "lion"]
ANY_SPELLING = {"linear-probe", "lpp", "clap"}  # read no prompts once they are trained
OF_PACKAGE = [name for name in methods.names() if methods.registered()[name].__module__.startswith("mmrl.")]


def parts_of(clip: Clip, name: str) -> Exportable:
    return exportable(Classifier(make(clip, name), trained=NAMES, template=TEMPLATE))


def told() -> dict[str, str]:
    """What the page says of each method."""
    rows = re.findall(r"(?m)^\| `([a-z][a-z-]*)` \| ([a-z ]+) \|", PAGE.read_text(encoding="utf-8"))
    return dict(rows)


@pytest.mark.parametrize("name", methods.names())
def test_programs_give_the_methods_logits(name: str, exact_clip: Clip) -> None:
    parts = parts_of(exact_clip, name)
    method = parts.classifier.method
    images = torch.randn(3, *parts.pixels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    names = (*NAMES[:1], *OTHERS) if parts.text else NAMES
    seen = torch.tensor([each in NAMES for each in names])
    if name in OF_PACKAGE:  # what the page says of it
        can = "trained classes only" if parts.kind != FULL else "any class" if parts.text else "no new classes"
        assert told()[name] in (can, "refused")
        assert parts.any_spelling == (name in ANY_SPELLING)
    with torch.no_grad():
        wanted = method.logits(images, method.head(method.class_list(names, TEMPLATE)), seen if parts.text else True)
        found = parts.image(images)
        if parts.kind != FULL:
            torch.testing.assert_close(found[1], wanted)
            return
        assert isinstance(method, TwoTower) and parts.rule is not None and parts.classes is not None
        check_rule(parts.rule, parts.outputs)
        text = parts.text.program(*parts.text.tokens(names)) if parts.text else method.text_features(method.class_list(names, TEMPLATE))
    features = tuple(each.numpy() for each in found)
    made = logits_of(parts.rule, features, text.numpy(), seen.numpy(), method.logit_scale)
    np.testing.assert_allclose(made, wanted.numpy(), rtol=1e-5, atol=1e-5)  # the rule counts in float32


@pytest.mark.parametrize("name", ["zero-shot", "mmrl", "tcp"])  # tcp feeds one template and holds to both
def test_several_templates_are_averaged(name: str, exact_clip: Clip) -> None:
    templates = (TEMPLATE, "two words of a {} and more")
    method = make(exact_clip, name)
    parts = exportable(Classifier(method, trained=NAMES, template=templates))
    assert parts.text is not None, parts.no_text
    with torch.no_grad():
        wanted = method.text_features(method.class_list(OTHERS, templates))
        torch.testing.assert_close(parts.text.program(*parts.text.tokens(OTHERS)), wanted)


@pytest.fixture(scope="module")
def exact_clip(small_clip: Clip) -> Clip:
    clip = copy.deepcopy(small_clip)
    clip.model.double()
    return clip


@pytest.mark.parametrize("name", [name for name, can in told().items() if can == "refused"])
def test_what_is_refused_has_one_message(name: str, small_clip: Clip, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    classifier = Classifier(make(small_clip, name), trained=NAMES, template=TEMPLATE)
    with pytest.raises(UsageError, match=f"image tower of method '{name}' cannot be exported"):
        export_adapter(classifier, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_page_knows_no_others() -> None:
    assert set(told()) == set(OF_PACKAGE)


def test_a_rule_of_another_combine_is_not_believed(exact_clip: Clip) -> None:
    method = make(exact_clip, "mmrl")

    class Other(type(method)):  # type: ignore[misc]
        def combine(self, images, text, seen):  # type: ignore[no-untyped-def]
            return super().combine(images, text, seen) * 2

    assert rule_of(method) is not None
    method.__class__ = Other
    assert rule_of(method) is None
