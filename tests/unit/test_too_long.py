"""A prompt that is too long: the message names the class, counts tokens, and what it offers fits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

import mmrl
from mmrl import methods
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from mmrl.errors import UsageError

BLACK = Image.new("RGB", (8, 8))
LONG = "cat and dog and owl and fox and hen and pig and cow and bee and ant and bat"  # 19 words, a token each


def said(classifier: Classifier, names: list[str], template: str) -> str:
    with pytest.raises(UsageError, match=r"^class '") as error:
        classifier.predict(BLACK, names, template=template)
    return str(error.value)


def test_the_ways_out_fit(small_clip: Clip) -> None:
    classifier = mmrl.zero_shot(small_clip)
    template = "a photo of a small {}, seen from far away."
    message = said(classifier, ["bird", LONG, "frog"], template)
    assert message.startswith(f"class '{LONG}' has too long a prompt: the prompt 'a photo of a small {LONG}, seen from far away.' has 32")
    assert " tokens; 'ViT-B-32/random' reads 24, 8 fewer." in message
    assert "the template '{}.' would fit" in message
    shorter = re.search(r"of the name, '(.*)' would fit", message)
    assert shorter and LONG.startswith(shorter[1])
    assert classifier.predict(BLACK, ["bird", LONG], template="{}.") in ("bird", LONG)
    classifier.predict(BLACK, ["bird", shorter[1]], template=template)
    more = " ".join(LONG.split()[: len(shorter[1].split()) + 1])
    assert "8 fewer" not in said(classifier, ["bird", more], template)  # it is the longest that fits


def test_what_does_not_fit_is_not_offered(small_clip: Clip) -> None:
    classifier = mmrl.zero_shot(small_clip)
    longer = f"{LONG} and {LONG}"
    message = said(classifier, ["bird", longer], "a {}.")
    assert "would fit" in message and "the template" not in message
    assert said(classifier, ["bird", "owl"], f"{longer} of a {{}}.").endswith("A way out: the template '{}.' would fit.")
    assert said(classifier, ["bird", "xqz" * 40], "a {}.").endswith("Shorten the class name or the template.")
    coop = Classifier(methods.build("coop", small_clip, {"n_ctx": 8}, seed=0))
    assert "the template" not in said(coop, ["bird", LONG], "a {}.")  # which it does not feed


def test_training_names_the_class(small_clip: Clip, tmp_path: Path) -> None:
    for name in ("bird", LONG):
        (tmp_path / name).mkdir()
        for i in range(2):
            BLACK.save(tmp_path / name / f"{i}.png")
    for method in ("linear-probe", "mmrl"):
        with pytest.raises(UsageError, match=f"class '{LONG}' has too long a prompt: .* would fit"):
            mmrl.fit(tmp_path, method=method, backbone=small_clip, shots=1, template="a photo of a small {}, seen from far away.")
    with pytest.raises(UsageError, match=f"class '{LONG}' has too long a prompt"):
        mmrl.zero_shot(small_clip).evaluate(tmp_path, template="a photo of a small {}, seen from far away.")
