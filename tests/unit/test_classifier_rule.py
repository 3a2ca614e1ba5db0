"""Which classifier an evaluation uses: the paper's rule for data sets that have a name, names for folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmrl import api, engine, methods
from mmrl.clip import Clip
from mmrl.engine import seen_classes
from mmrl.errors import UsageError
from tests.unit.conftest import Cli

NAMES = ("cat", "dog", "owl")


def test_the_rule() -> None:
    def rule(**more: str) -> list[bool]:
        return seen_classes(NAMES, ("Dog", "cat"), **more)[0].tolist()  # type: ignore[arg-type]

    assert rule() == [True, True, False]  # a folder: by names
    assert rule(dataset="imagenet", trained_on="imagenet") == [True, True, False]
    assert rule(dataset="imagenet_a", trained_on="imagenet") == [False] * 3  # the names agree, the pictures are another set's
    assert rule(dataset="imagenet_a", trained_on="imagenet", classifier="fused") == [True] * 3
    assert rule(dataset="imagenet", trained_on="imagenet", classifier="class") == [False] * 3
    assert seen_classes(NAMES, ())[0].tolist() == [False] * 3
    with pytest.raises(UsageError, match="does not say which data set it was trained on.*--classifier: fused .* or class"):
        rule(dataset="imagenet_a")
    with pytest.raises(UsageError, match="unknown classifier 'fusd'. Did you mean 'fused'"):
        rule(classifier="fusd")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the base half of the mini objects, long enough that the two classifiers differ."""
    out = tmp_path_factory.mktemp("runs") / "objects"
    quick = {"epochs": 3, "batch_size": 10, "rep_dim": 8, "lr": 0.01}
    api.train("mini:objects", shots=2, classes="base", out=out, overrides=quick, progress=False, device="cpu")
    return out


def scores(cli: Cli, *arguments: object) -> tuple[str, float, bool | list[bool]]:
    """The rule, the calibration error, and which classes count as trained on: one answer, or one for each."""
    code, printed, err = cli("eval", *arguments, "--json")
    assert code == 0, err
    (test,) = json.loads(printed)["tests"]
    return test["classifier"], test["scores"]["ece"], test["seen"]


def test_eval_scores_a_shifted_set_with_the_class_token_alone(cli: Cli, adapter: Path) -> None:
    assert engine.read_config(adapter).dataset == "mini:objects"
    shifted = (adapter, "--data", "mini:objects-sketch", "--classes", "base", "--device", "cpu")
    rule, auto, seen = scores(cli, *shifted)
    assert rule == "the class token alone: trained on 'mini:objects', which is another data set" and seen is False
    assert scores(cli, *shifted, "--classifier", "class")[1] == auto != scores(cli, *shifted, "--classifier", "fused")[1]
    rule, fused, seen = scores(cli, adapter, "--data", "mini:objects", "--classes", "base", "--device", "cpu")
    assert rule == "fused on 10 classes that were trained on" and seen is True
    assert scores(cli, adapter, "--data", "mini:objects", "--classes", "base", "--classifier", "fused", "--device", "cpu")[1] == fused
    rule, _, seen = scores(cli, adapter, "--data", "mini:objects", "--device", "cpu")
    assert rule == "fused on 10 classes that were trained on, the class token alone on 10 new ones"
    assert seen_classes(("a", "b"), ("a",))[1] == "fused on 1 class that was trained on, the class token alone on 1 new one"
    assert isinstance(seen, list) and len(seen) == 20 and sum(seen) == 10


def test_a_method_with_one_classifier_has_none_to_name(cli: Cli, photos: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "o", ("--data", photos, "--device", "cpu")
    api.train(photos, method="linear-probe", shots=2, out=out, progress=False, device="cpu")
    code, printed, _ = cli("eval", out, *data)
    assert code == 0 and "linear-probe" in printed and "classifier:" not in printed
    assert scores(cli, out, *data)[0] == "" and scores(cli, out, *data)[2] is True
    code, _, err = cli("eval", out, *data, "--classifier", "fused")
    assert code == 2 and "has one classifier" in err
    assert seen_classes(NAMES, ("cat",), dataset="imagenet", two=False)[0].tolist() == [True, False, False]  # needs no set trained on
    assert seen_classes(NAMES, ("cat",), dataset="imagenet", trained_on="dtd", two=False)[0].tolist() == [False] * 3


@pytest.mark.parametrize("inference", ["decoupled", "class", "both"])
@pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])
def test_two_classifiers_are_those_whose_scores_differ(small_clip: Clip, name: str, inference: str) -> None:
    method = methods.build(name, small_clip, {"inference": inference}, seed=0)
    images, head = torch.rand(2, 3, 32, 32), method.head(method.class_list(NAMES, "a {}."))
    with torch.no_grad():
        differ = not torch.equal(method.logits(images, head, True), method.logits(images, head, False))
    assert method.two_classifiers == differ == (inference == "decoupled")


def test_the_data_set_trained_on_goes_with_the_adapter(adapter: Path, tmp_path: Path) -> None:
    classifier = api.from_pretrained(adapter, device="cpu")
    assert classifier.trained_on == "mini:objects" and classifier.device == torch.device("cpu")
    classifier.save_pretrained(tmp_path / "copy")
    assert engine.read_config(tmp_path / "copy").dataset == "mini:objects"


def test_a_classifier_moves_with_its_backbone(adapter: Path) -> None:
    classifier = api.from_pretrained(adapter, device="cpu")
    image = torch.rand(3, 64, 64)
    before = classifier.predict_proba(image)
    assert classifier.to("auto") is classifier and classifier.device == api.load_clip("tiny").device
    assert classifier.to("cpu").predict_proba(image).tolist() == before.tolist()
    method = classifier.method.to("meta")
    assert method is classifier.method and method.clip.device.type == "meta" and next(method.parameters()).device.type == "meta"
    with pytest.raises(UsageError, match="device 'meta' cannot be used here"):
        classifier.to("meta")
