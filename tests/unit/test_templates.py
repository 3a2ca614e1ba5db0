"""Several prompt templates: the normalised mean of normalised features, wherever class features are used."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl import api, engine
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from mmrl.data import Dataset
from mmrl.errors import UsageError
from mmrl.methods import Method, build
from mmrl.methods.two_tower import cosine_logits
from mmrl.reports import read_record
from mmrl.templates import check_template, fill
from tests.oracle.pair import relative_error
from tests.unit.colours import OPTIONS, base_draw, clip_on_one_thread, colours

NAMES = ("cat", "a long_dog name", "owl")
THREE = ("a photo of a {}.", "{}", "art of the {}, in a hall.")
LABELS = torch.tensor([0, 2, 1])
METHODS = ("mmrl", "mmrlpp")

clip = pytest.fixture(scope="module")(clip_on_one_thread)


def mean(parts: list[Tensor]) -> Tensor:
    return F.normalize(torch.stack(parts).mean(0), dim=-1)


@pytest.fixture(scope="module")
def exact(small_clip: Clip) -> Clip:
    """In float64, where averages in another order differ by 1e-16 and not by what a processor makes of float32."""
    clip = deepcopy(small_clip)
    clip.model.double()
    return clip


def method_of(clip: Clip, name: str) -> Method:
    method = build(name, clip, {"rep_tokens": 2, "rep_dim": 8} if name != "zero-shot" else None, seed=1)
    method.to(clip.model.logit_scale.dtype)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return method


def test_prompts_template_by_template() -> None:
    assert fill(THREE[:2], NAMES[:2]) == ["a photo of a cat.", "a photo of a a long dog name.", "cat", "a long dog name"]
    assert check_template(["a {}."]) == check_template("a {}.") == "a {}."
    assert check_template(list(THREE)) == THREE


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ((), "there is no prompt template of 'x'"),
        (("a {}", "b"), "prompt template 'b' of 'x' must have exactly one"),
        (("a {}", "{} {}"), "must have exactly one"),
        (("a {}", 3), "prompt template 3 of 'x' must have exactly one"),
        (("a {}", "b {}", "a {}"), "'a {}' of 'x' stands twice"),
    ],
)
def test_bad_templates_are_refused(template: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Dataset("x", ("a",), template, [], [], [], read=lambda key: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("name", ["zero-shot", *METHODS])
def test_features_are_those_averaged_by_hand(exact: Clip, name: str) -> None:
    method = method_of(exact, name)
    together, alone = method.class_list(NAMES, THREE), [method.class_list(NAMES, one) for one in THREE]
    assert len(together) == 3 and len(together.fed.texts) == 9
    with torch.no_grad():
        assert relative_error(together.zero_shot, mean([classes.zero_shot for classes in alone])) < 1e-9
        assert relative_error(method.text_features(together), mean([method.text_features(classes) for classes in alone])) < 1e-9
        assert relative_error(method.text_features(together), method.text_features(alone[0])) > 1e-2


@pytest.mark.parametrize("name", METHODS)
def test_one_template_is_not_changed_by_a_bit(small_clip: Clip, name: str) -> None:
    method = method_of(small_clip, name)
    one, listed = method.class_list(NAMES, THREE[0]), method.class_list(NAMES, THREE[:1])
    assert one.fed.texts == listed.fed.texts and torch.equal(one.zero_shot, listed.zero_shot)
    assert torch.equal(one.zero_shot, small_clip.encode_text(one.fed.texts))


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients(exact: Clip, images: Tensor, name: str) -> None:
    """Against the loss with features averaged by hand, and with the prompts encoded two at a time."""
    images = images.double()

    def run(chunk: int | None) -> tuple[Tensor, dict[str, Tensor]]:
        method = method_of(exact, name)
        classes = method.class_list(NAMES, THREE)
        loss = method.loss(images, LABELS, replace(classes, prompts=replace(classes.fed, chunk=chunk)))
        loss.total.backward()
        return loss.total.detach(), {key: value.grad for key, value in method.named_parameters() if value.grad is not None}

    total, gradients = run(None)
    chunked, again = run(2)
    method = method_of(exact, name)
    lists = [method.class_list(NAMES, one) for one in THREE]
    text, frozen = mean([method.text_features(classes) for classes in lists]), mean([classes.zero_shot for classes in lists])
    features, zero_shot = method.image_features(images), exact.encode_image(images)
    assert features.representation is not None
    ce = [F.cross_entropy(cosine_logits(image, text, 100.0), LABELS) for image in (features.class_token, features.representation)]
    pairs = ((features.class_token, zero_shot), (text, frozen))
    by_hand = 0.7 * ce[0] + 0.3 * ce[1] + sum(1 - F.cosine_similarity(a, b).mean() for a, b in pairs)
    by_hand.backward()
    assert relative_error(total, by_hand) < 1e-9 and relative_error(chunked, total) < 1e-9
    assert set(gradients) == set(again) and gradients
    for key, value in method.named_parameters():
        if key in gradients:
            assert value.grad is not None
            assert relative_error(gradients[key], value.grad) < 1e-9 and relative_error(again[key], gradients[key]) < 1e-9, key


def test_a_backbone_that_is_not_staged_averages_too(exact: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = exact.class_list(NAMES, THREE).zero_shot
    monkeypatch.setattr(exact, "not_staged", "for this test")
    assert relative_error(exact.class_list(NAMES, THREE).zero_shot, expected) < 1e-9


@pytest.mark.filterwarnings("ignore::mmrl.engine.BelowZeroShotWarning", "ignore::mmrl.errors.Notice")
def test_a_run_keeps_its_templates(clip: Clip, tmp_path: Path) -> None:
    two = ("a photo of {}.", "the colour {}.")

    def train(template: object, **more: Any) -> engine.RunResult:
        options = {**OPTIONS, "epochs": 2, "batch_size": 8, "draw": base_draw(), "classes": "base", "progress": False}
        return api.train(colours(), backbone=clip, template=template, out=tmp_path, **options, **more)

    result = train(two)
    assert result.fitted is not None and result.record.training is not None
    assert result.fitted.data.template == result.record.training.template == two
    found = read_record(tmp_path)
    assert found is not None and found.training is not None and found.training.template == two
    method, saved = engine.load_adapter(tmp_path, clip)
    assert saved.template == two
    card = (tmp_path / "README.md").read_text()
    assert all(f"| prompt, averaged | `{one}` |" in card for one in two)
    again = train(list(two), resume=True)
    assert [test.scores for test in again.record.tests] == [test.scores for test in result.record.tests]
    with pytest.raises(UsageError, match="template"):
        train(two[0], resume=True)
    classifier = Classifier(method, trained=saved.class_names, template=saved.template)
    image = colours().image(colours().test[0])
    assert classifier.predict_proba(image).tolist() == classifier.predict_proba(image, template=list(two)).tolist()  # type: ignore[arg-type]
    assert classifier.predict_proba(image).tolist() != classifier.predict_proba(image, template=two[0]).tolist()
