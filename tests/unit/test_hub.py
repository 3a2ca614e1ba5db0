"""`mmrl push` and `Classifier.push_to_hub`, against a stand-in of a model hub; what was uploaded is loaded again from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mmrl.classifier import hub
from mmrl.engine.adapter import read_config, write_trust
from mmrl.errors import UsageError
from mmrl.reports.card import model_card
from mmrl.reports.records import RECORD_NAME, read_record
from mmrl.templates import DEFAULT_TEMPLATE
from mmrl.trust.state import Trust
from tests.unit.hub_stand_in import TOKEN, Hub, Model, standing_in
from tests.unit.test_report_card import CONFIG
from tests.unit.test_reports import make

SRC = Path(__file__).parents[2] / "src"
CODE = """
import contextlib, json, os, sys
folder, photo, steps = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
import mmrl
from mmrl.classifier.hub import push
told = []
for step in steps:
    os.environ["HF_TOKEN"] = step.pop("login", os.environ["WITH"])
    try:
        told.append(push(folder, step.pop("name"), **step))
    except mmrl.MmrlError as error:
        told.append(f"{type(error).__name__}: {error}")
os.environ["HF_TOKEN"] = os.environ["WITH"]
first = mmrl.from_pretrained(folder)
told.append(first.push_to_hub("me/animals", revision="second", message="again"))
for name in ("me/animals", "me/animals@second"):
    again = mmrl.from_pretrained(name)
    told.append([again.rank(photo) == first.rank(photo), again.trained == first.trained, again.trust.scores == first.trust.scores])
with contextlib.suppress(mmrl.MmrlError):
    mmrl.from_pretrained("me/animals@nowhere")
    told.append("loaded")
print("\\n" + json.dumps(told))
"""


@pytest.fixture(scope="module")
def standing() -> Iterator[Hub]:
    with standing_in() as found:
        found.models["me/other"] = Model(branches={"main": {"config.json": b"{}", "model.safetensors": b"x"}})
        of_peft = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"x"}
        found.models["me/peft"] = Model(branches={"main": of_peft})
        found.models["me/public"] = Model(branches={"main": {".gitattributes": b""}})
        yield found


def environment(home: Path, address: str) -> dict[str, str]:
    hub_only = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    return {**os.environ, **hub_only, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(SRC), "WITH": TOKEN}


@pytest.fixture(scope="module")
def adapter(trained: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with the record of its run, the list of its images, and a calibration on images whose names are known."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("adapter") / "x")
    names, keys = read_config(folder).class_names, [f"{path.parent.name}/{path.name}" for path in sorted(photos.rglob("*.jpg"))]
    logits = np.random.default_rng(0).normal(0, 3, (len(keys), len(names)))
    trust = Trust.fit(logits, np.arange(len(keys)) % 2, classes=names, template=DEFAULT_TEMPLATE, scale=100, source="held out", keys=keys)
    write_trust(folder, trust, read_record(folder / RECORD_NAME))
    return folder


@pytest.fixture(scope="module")
def told(standing: Hub, adapter: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What a process says that uploads in several ways, and loads again."""
    photo = next((photos / "red_thing").iterdir())
    steps = [
        {"name": "me/animals", "private": True, "licence": "cc-by-4.0"},
        {"name": "me/other"}, {"name": "me/peft"}, {"name": "me/public", "private": True}, {"name": "them/animals"},
        {"name": "me/animals", "login": "hf_wrong"}, {"name": "me/given", "login": "", "token": TOKEN, "private": True},
    ]  # fmt: skip
    command = [sys.executable, "-c", CODE, str(adapter), str(photo), json.dumps(steps)]
    place = tmp_path_factory.mktemp("home")
    done = subprocess.run(command, env=environment(place, standing.address), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_what_was_uploaded_answers_the_same(told: list[Any], standing: Hub) -> None:
    assert told[0].startswith(f"{standing.address}/me/animals") and told[-3].startswith(f"{standing.address}/me/animals")
    assert told[-2:] == [[True, True, True]] * 2
    model = standing.models["me/animals"]
    assert model.private and model.messages == [hub.MESSAGE, "again"]
    assert all(set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"} for files in model.branches.values())
    assert {"POST /api/validate-yaml", "POST /api/repos/create"} <= set(standing.requests)


def test_a_login_may_be_given(told: list[Any], standing: Hub) -> None:
    assert told[6].startswith(f"{standing.address}/me/given") and standing.models["me/given"].private


def test_no_image_is_named_on_the_hub(told: list[Any], standing: Hub, photos: Path) -> None:
    names = [f"{path.parent.name}/{path.name}" for path in photos.rglob("*.jpg")]
    for files in standing.models["me/animals"].branches.values():
        assert json.loads(files["adapter_config.json"])["trust"]["keys"] == []
        assert not [name for name in names for content in files.values() if name.encode() in content]


def test_the_card_on_the_hub_has_what_hubs_read(told: list[Any], standing: Hub) -> None:
    branches = standing.models["me/animals"].branches
    data = yaml.safe_load(branches["main"]["README.md"].split(b"---\n")[1])
    assert data["license"] == "cc-by-4.0" and "base_model" not in data  # tiny is on no hub
    assert data["library_name"] == "mmrl" and data["pipeline_tag"] == "zero-shot-image-classification" and data["metrics"] == ["accuracy"]
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["type"] == "accuracy" and 0 <= result["metrics"][0]["value"] <= 1 and result["dataset"]["split"] == "test"
    assert yaml.safe_load(branches["second"]["README.md"].split(b"---\n")[1])["model-index"] == data["model-index"]


def test_what_the_hub_refuses_is_one_message(told: list[Any], standing: Hub) -> None:
    for said, wanted in zip(
        told[1:6],
        (
            "UsageError: 'me/other' is there already, and is no adapter of mmrl (it has config.json, model.safetensors). Choose",
            "UsageError: 'me/peft' is there already, and is no adapter of mmrl",
            "UsageError: 'me/public' is there already, and public: private=True (--private) would not hide it.",
            "UsageError: 'them/animals' cannot be uploaded: this login may not write for 'them'. Name one of your own.",
            "UsageError: 'me/animals' cannot be uploaded: the model hub does not accept the login. Log in with `hf auth login`",
        ),
        strict=True,
    ):
        assert said.startswith(wanted), said
    assert standing.models["me/other"].messages == [] and "them/animals" not in standing.models


@pytest.mark.parametrize("name", ["animals", "me/", "me/a/b", "/animals", "me/a b", "https://hub/me/animals", ""])
def test_what_is_no_name_is_refused(name: str, trained: Path) -> None:
    with pytest.raises(UsageError, match="is no name on a model hub: it must be ORG/NAME"):
        hub.push(trained, name)


def test_other_kinds_of_repositories_are_refused(trained: Path) -> None:
    with pytest.raises(UsageError, match="repo_type is 'dataset', but what is uploaded is a model"):
        hub.push(trained, "me/animals", repo_type="dataset")


def test_the_command(cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    code, _, said = cli("push", trained, "me/animals")
    assert code == 2 and "there is no login to the model hub. Log in with `hf auth login`" in said
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    code, _, said = cli("push", trained, "me/animals")  # the tests' own process is offline
    assert code == 1 and "'me/animals' cannot be uploaded: HF_HUB_OFFLINE is set." in said
    code, _, said = cli("push", trained, "me/animals", "--license", "My Own!")
    assert code == 2 and "it must be as model hubs name it" in said
    code, _, said = cli("push", tmp_path, "me/animals")
    assert code == 2 and "has no adapter" in said
    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr(hub, "push", lambda *words, **options: sent.append((*words, options)) or "http://hub/me/animals")
    code, out, _ = cli("push", trained, "me/animals", "--private", "--revision", "v2", "--message", "m", "--license", "mit")
    assert code == 0 and "uploaded to http://hub/me/animals; to load it: mmrl predict me/animals@v2 PHOTO" in out
    assert sent == [(str(trained), "me/animals", {"private": True, "revision": "v2", "message": "m", "licence": "mit"})]


def test_a_backbone_of_a_hub_is_the_base_model() -> None:
    from mmrl.clip.load import hub_name

    assert hub_name("hf-hub:org/clip") == "org/clip" and hub_name("tiny") == hub_name("local-dir:x") == hub_name("ViT-B-32/random") == ""
    assert hub_name("ViT-B-16-quickgelu/openai") == "timm/vit_base_patch16_clip_224.openai"
    odd = 'a"b\\: \u2028 \x7f 😀 {{x}}\n'
    card = model_card(CONFIG | {"backbone": odd, "method": odd}, make(0.8, 0.6, dataset=odd.strip()), title=odd, base_model=odd)
    data = yaml.safe_load(card.split("\n---\n")[0])
    assert data["base_model"] == odd and data["tags"][-1] == odd and data["model-index"][0]["name"] == odd
    assert [each["metrics"][0]["value"] for each in data["model-index"][0]["results"]] == [0.8, 0.6]
