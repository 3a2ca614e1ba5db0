"""The server answers what the classifier answers, in every form of a request."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import mmrl
from mmrl import methods
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from tests.unit.serving import ANIMALS, adapter, photo, scores, serving, text

NEW = ["red panda", "wolverine", "<script>alert(1)</script>"]
NEAR: dict[str, Any] = {"abs": 1e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    adapter(root / "animals", calibrated=True)
    adapter(root / "coop", "coop")
    return root


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Any]:
    with serving(("animals", str(folder / "animals")), ("coop", str(folder / "coop")), ("zero-shot", "zero-shot")) as found:
        yield found


def classifier(client: Any, name: str = "animals") -> Classifier:
    return client.app.state.service.adapters.get(name).classifier  # type: ignore[no-any-return]


def ranked(client: Any, image: bytes, classes: list[str] | None = None, name: str = "animals", **options: Any) -> dict[str, float]:
    return {each.name: each.probability for each in classifier(client, name).rank(image, classes, top=99, **options)[0]}


@pytest.mark.parametrize("name", ["animals", "coop", "zero-shot"])
def test_as_rank(client: Any, name: str) -> None:
    image = photo(1)
    answer = client.post(f"/models/{name}", json={"inputs": text(image), "parameters": {"candidate_labels": NEW}})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert scores(answer.json()) == pytest.approx(ranked(client, image, NEW, name), **NEAR)
    assert [each["score"] for each in answer.json()] == sorted((each["score"] for each in answer.json()), reverse=True)
    assert "<" not in answer.text and answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


def test_each_form_of_a_request_has_the_same_answer(client: Any) -> None:
    image = photo(2)
    expected = pytest.approx(ranked(client, image, NEW), **NEAR)
    query = {"candidate_labels": NEW}
    prompts = {"inputs": f"data:image/jpeg;base64,{text(image)}", "parameters": {"candidate_labels": NEW}}
    for answer in (
        client.post("/", json=prompts),
        client.post("/models/animals", params=query, content=image, headers={"content-type": "image/jpeg"}),
        client.post("/models/animals", params=query, content=image, headers={"content-type": "application/octet-stream"}),
        client.post("/models/animals", data=query, files={"image": image}),
        client.post("/", data={"candidate_labels": ", ".join(NEW)}, files={"file": image}),
        client.post("/", data={"candidate_labels": '["red panda", "wolverine", "<script>alert(1)</script>"]'}, files={"image": image}),
    ):
        assert answer.status_code == 200 and scores(answer.json()) == expected


def test_kserve(client: Any) -> None:
    images = [photo(3), photo(4)]
    inputs = [
        {"name": "image", "shape": [2], "datatype": "BYTES", "data": [text(each) for each in images]},
        {"name": "candidate_labels", "shape": [3], "datatype": "BYTES", "data": NEW},
        {"name": "hypothesis_template", "shape": [1], "datatype": "BYTES", "data": ["a drawing of a {}."]},
    ]
    answer = client.post("/v2/models/animals/infer", json={"id": "7", "inputs": inputs, "parameters": {"top_k": 2}}).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("animals", "1", "7")
    names, values = (each["data"] for each in answer["outputs"])
    assert [each["shape"] for each in answer["outputs"]] == [[2, 2], [2, 2]]
    for at, image in enumerate(images):
        expected = ranked(client, image, NEW, template="a drawing of a {}.")
        best = dict(list(expected.items())[:2])
        assert dict(zip(names[2 * at : 2 * at + 2], values[2 * at : 2 * at + 2])) == pytest.approx(best, **NEAR)
    wish = [{"name": "label"}, {"name": "trained"}, {"name": "unknown"}]
    asked = {"inputs": inputs[:1], "outputs": wish, "parameters": {"threshold": 1e9}}
    label, trained, unknown = client.post("/v2/models/animals/infer", json=asked).json()["outputs"]
    assert set(label["data"]) == set(ANIMALS) and all(trained["data"]) and unknown["data"] == [True, True]
    about = client.get("/v2/models/animals").json()
    assert about["name"] == "animals" and [each["name"] for each in about["inputs"]] == ["image", "candidate_labels", "hypothesis_template"]
    assert client.get("/v2/models/animals/ready").json() == {"name": "animals", "ready": True}
    assert client.get("/v2/health/live").json() == {"live": True} and client.get("/v2").json()["version"] == mmrl.__version__


def test_what_is_served(client: Any, folder: Path) -> None:
    assert client.get("/healthz").json() == {"live": True} and client.get("/readyz").json() == {"ready": True}
    first, second, third = client.get("/models").json()["models"]
    assert first == client.get("/models/animals").json() and first["classes"] == list(ANIMALS) and first["calibrated"]
    assert (second["method"], third["classes"], third["version"]) == ("coop", [], 1)
    assert str(folder) not in client.get("/models").text
    clips = {id(each.classifier.method.clip) for each in client.app.state.service.adapters.all}
    assert len(clips) == 1  # one backbone in memory


def test_what_an_answer_is_worth(client: Any) -> None:
    image = photo(5)
    own = classifier(client)
    judged = own.judge(image, coverage=0.9, recall=0.9)[0]
    asked = {"inputs": text(image), "parameters": {"recall": 0.9, "coverage": 0.9, "top_k": 2}}
    answer = client.post("/", json=asked).json()
    assert answer["unknown"] == judged.unknown and answer["set"] == list(judged.within) and answer["recall_known"] is True
    assert answer["known_score"] == pytest.approx(judged.score, **NEAR) and len(answer["labels"]) == 2
    assert all(each["trained"] for each in answer["labels"])
    asked["parameters"] = {"reject": True, "candidate_labels": NEW}
    answer = client.post("/", json=asked).json()
    assert answer["recall_known"] is False and [each["trained"] for each in answer["labels"] if each["label"] == "wolverine"] == [False]
    raw = {"inputs": text(image), "parameters": {"calibrated": False}}
    assert scores(client.post("/", json=raw).json()) == pytest.approx(ranked(client, image, calibrated=False), **NEAR)
    refused = client.post("/models/coop", json={"inputs": text(image), "parameters": {"reject": True}})
    assert refused.status_code == 422 and "not calibrated" in refused.json()["error"]
    refused = client.post("/", json={"inputs": text(image), "parameters": {"coverage": 0.9, "candidate_labels": NEW}})
    assert refused.status_code == 422 and "coverage is known among the 3 classes" in refused.json()["error"]


def test_several_at_once_have_their_own_answers(client: Any) -> None:
    """Other images, class lists and adapters, in the same batches."""
    lists: list[list[str] | None] = [None, NEW, ["cat", "dog"], ["cat", "dog", "red panda", "owl"]]
    asked = [(photo(seed), lists[seed % 4], ("animals", "coop")[seed % 3 == 0]) for seed in range(16)]

    def ask(one: tuple[bytes, list[str] | None, str]) -> dict[str, float]:
        image, classes, name = one
        parameters = {} if classes is None else {"candidate_labels": classes}
        return scores(client.post(f"/models/{name}", json={"inputs": text(image), "parameters": parameters}).json())

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, asked))
    for (image, classes, name), answer in zip(asked, answers):
        assert answer == pytest.approx(ranked(client, image, classes, name), **NEAR)
    numbers = client.get("/metrics").text
    assert 'mmrl_images_total{adapter="animals"}' in numbers and "mmrl_queue_images 0.0" in numbers
    assert "mmrl_batch_images_bucket" in numbers and "mmrl_request_seconds_bucket" in numbers


def test_several_images_in_one_request(client: Any) -> None:
    images = [photo(6), photo(7, kind="PNG"), photo(8, kind="WEBP")]
    answer = client.post("/", json={"inputs": [text(each) for each in images], "parameters": {"top_k": 1}}).json()
    assert [each[0]["label"] for each in answer] == [next(iter(ranked(client, each))) for each in images]
    assert client.post("/", files=[("image", each) for each in images], data={"top_k": "1"}).json() == answer


@pytest.mark.parametrize("name", ["zero-shot", "cocoop", "plot", "mmrl"])
def test_images_of_several_lists_pass_together(small_clip: Clip, name: str) -> None:
    """The rows that each list asks about are those of a pass of its own."""
    method = methods.build(name, small_clip, seed=1)
    own = Classifier(method, trained=ANIMALS)
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    asked = [(own.head(), [0, 3]), (own.head(["cat", "badger"]), [1, 2, 4]), (own.head(["a", "b", "c"]), [3])]
    for (head, rows), logits in zip(asked, own.score_pixels(pixels, asked)):
        with torch.no_grad():
            expected = method.logits(pixels, head.head, head.seen)[rows]
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
