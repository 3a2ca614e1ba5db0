"""`mmrl export --to web`: the page in a browser answers as Python does, and nothing that users name runs in it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from mmrl.classifier.predictor import Classifier
from mmrl.clip import random_clip
from mmrl.data import to_rgb
from mmrl.data.preprocess import Preprocess
from mmrl.errors import MmrlError, UsageError
from mmrl.export import export_adapter, ort_web
from mmrl.names import name_key
from mmrl.trust.state import Trust
from tests.unit.colours import NAMES, PROMPT, fresh, read
from tests.unit.export_pages import PATIENCE, chromium, runtime_files, served

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

HOSTILE = '<img src=x onerror="window.hurt=1">'
NEW = ("zebra", HOSTILE, "café ÉTÉ", "dog_house (2)")
CONTEXT = 32
TOLERANCE = 1e-5  # of a probability
TEXTS = (
    "a photo of a dog.", "AT&amp;T &lt;b&gt; &eacute;t&EACUTE; &#233; &hellip; &amp &amp;amp; x&not y", "“curly” ‘quotes’ it’s",
    "ﬁsh ﬄ Ĳ ŉ", "ＬＯＵＤ　ＮＯＩＳＥＳ ﾀ", "naïve café", "中文 字 日本語 テスト", "мама мыла раму", "Ελληνικά Σίσυφος ΣΑΣ", "İstanbul ıI",
    "😀🐕\u200d🦺 emoji 👩\u200d👩\u200d👧", "l'été they're I'll we'd 'S", "a\tb\r\nc\u2028d\x85e\x1ff", "x\u200bb\ufeffc", "123 4½ ²",
    "<start_of_text> x <end_of_text>", HOSTILE, "_under_score_ --- !!! ...", "\x1b[31mred\x1b[0m", "ß ẞ STRASSE", "हिन्दी", "العربية",
    "ไทย", "e\u0301 N\u0303", "", "   ", "a" * 50, "ſtreet 'ſ", "&#x80; &#0; &#59; &semi;", "100% sure @home #tag $5 €5 £", "𝒥ohn ℋancock",
    "ᾳ ᾼ ǅ ǈ", "한국어 조선글", "lowermost newest internationalization",
)  # fmt: skip
SIZES = ((48, 48), (100, 48), (37, 53), (333, 211), (480, 360), (49, 50), (1000, 31), (3, 200), (1283, 40))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """A classifier with two image features and a calibration; untrained, so that every part of it counts."""
    vision = {"layers": 1, "width": 32, "image_size": 32, "patch_size": 16, "head_width": 32}
    text = {"layers": 1, "width": 32, "heads": 1, "context_length": CONTEXT}
    clip = random_clip("ViT-B-32", embed_dim=16, vision_cfg=vision, text_cfg=text)
    logits = np.random.default_rng(0).normal(0, 3, (40, len(NAMES)))
    keys = [f"secret/{number}" for number in range(40)]
    trust = Trust.fit(logits, np.arange(40) % 4, classes=NAMES, template=PROMPT, scale=100, source="held out", keys=keys)
    return Classifier(fresh(clip), trained=NAMES, template=PROMPT, trust=trust)


@pytest.fixture(scope="module")
def folder(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runtime = tmp_path_factory.mktemp("ort")
    for name, content in runtime_files().items():
        (runtime / name).write_bytes(content)
    return export_adapter(classifier, tmp_path_factory.mktemp("web") / "page", to="web", ort=runtime).folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, with what it says wrong and what it asks other servers for."""
    context = browser.new_context()
    page = context.new_page()
    page.told, page.asked = [], []
    page.on("console", lambda message: page.told.append(message.text))
    page.on("pageerror", lambda error: page.told.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.locator("#status", has_text="Ready").wait_for(timeout=PATIENCE)
    yield page
    context.close()
    assert not [url for url in page.asked if not url.startswith((address, "blob:", "data:"))] and not page.told


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photos of several sizes and kinds, one turned by its EXIF."""
    folder = tmp_path_factory.mktemp("pictures")
    turned = Image.Exif()
    turned[0x0112] = 6
    read("red/1").resize((90, 60)).save(folder / "red.png")
    read("green/2").resize((61, 200)).save(folder / "green.jpg", quality=95)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)).save(folder / "turned.png", exif=turned)
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(folder / "grey.png")
    return sorted(folder.iterdir())


def answers(page: Any) -> list[list[tuple[str, float, bool]]]:
    """Names, probabilities and whether they were trained, of each card."""
    found = page.evaluate(
        "[...document.querySelectorAll('#cards > li')].map(card => [...card.querySelectorAll('.ranks li')].map(row =>"
        " [row.querySelector('.name').firstChild.textContent, row.querySelector('meter').value, row.className !== 'is-new']))"
    )
    return [[(name, share, trained) for name, share, trained in card] for card in found]


def require_same(page: Any, classifier: Classifier, pictures: list[Path], names: tuple[str, ...] | None) -> None:
    found = answers(page)
    for own, wanted in zip(found, classifier.rank([str(path) for path in pictures], names, top=5), strict=True):
        assert [(name, trained) for name, _, trained in own] == [(each.name, each.trained) for each in wanted]
        assert np.allclose([share for _, share, _ in own], [each.probability for each in wanted], atol=TOLERANCE, rtol=0)


def choose(page: Any, text: str, says: str) -> None:
    """Type new names, and wait until `says` is shown."""
    page.fill("#new", text)
    page.get_by_text(says).first.wait_for(timeout=PATIENCE)


def test_photos_are_classified_as_in_python(page: Any, classifier: Classifier, pictures: list[Path]) -> None:
    page.set_input_files("#files", pictures)
    page.get_by_text("4 photos classified among 4 classes.").wait_for(timeout=PATIENCE)
    require_same(page, classifier, pictures, None)
    choose(page, "\n".join(NEW), "4 photos classified among 8 classes.")
    require_same(page, classifier, pictures, (*NAMES, *NEW))
    page.uncheck("#trained")
    page.get_by_text("4 photos classified among 4 classes.").wait_for(timeout=PATIENCE)
    require_same(page, classifier, pictures, NEW)
    choose(page, "Red, zebra", "4 photos classified among 2 classes.")
    require_same(page, classifier, pictures, ("Red", "zebra"))
    assert page.evaluate("window.hurt") is None and page.locator("#cards img").count() == 4


def test_photos_can_be_dropped(page: Any, classifier: Classifier, pictures: list[Path]) -> None:
    content = base64.b64encode(pictures[0].read_bytes()).decode()
    page.evaluate(
        """([content, name]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        [content, HOSTILE],
    )
    page.get_by_text("1 photo classified among 4 classes.").wait_for(timeout=PATIENCE)
    require_same(page, classifier, pictures[:1], None)
    assert page.locator(".file").inner_text() == HOSTILE and page.evaluate("window.hurt") is None


def test_what_is_wrong_is_said(page: Any, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no photo")
    page.set_input_files("#files", [broken, pictures[0]])
    page.get_by_text("1 photo classified").wait_for(timeout=PATIENCE)
    assert "This browser cannot read it" in page.locator("#cards > li").first.inner_text()
    for text, says in (
        ("Zebra, zebra", "The name “zebra” stands twice (as “Zebra” and as “zebra”)"),
        ("RED_", "The name “RED_” stands twice (as “red” and as “RED_”)"),
        ("zebra,,dog", "A name between two commas is blank"),
        ("one two three " * 9, "more than the 32 that are read."),
        ("x" * 3000, "is too long for a prompt"),
    ):
        choose(page, text, says)
        assert "no answer" in page.locator("#cards > li").last.inner_text()
    page.uncheck("#trained")
    choose(page, "", "There is no class to choose from")
    choose(page, "zebra", "1 photo classified among 1 class.")
    assert next(card for card in answers(page) if card)[0][:1] == ("zebra",)
    page.told.clear()  # the browser's own line about the broken image


def test_it_fetches_from_nowhere_else_and_runs_nothing_else(page: Any, address: str) -> None:
    other = address.replace("127.0.0.1", "localhost")
    for code in (f"fetch({other!r})", f"import({other!r} + 'page/names.js')"):
        assert page.evaluate(f"{code}.then(() => 'went', () => 'refused')") == "refused"
    inside = f"fetch({other!r}).then(() => postMessage('went'), () => postMessage('refused'))"  # as the page's own worker starts
    started = "new Worker(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })), { type: 'module' })"
    assert page.evaluate(f"code => new Promise(done => {started}.onmessage = each => done(each.data))", inside) == "refused"
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hurt=1\">')")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hurt") is None and page.told
    page.told.clear()
    page.asked.clear()


def test_a_folder_that_was_not_copied_whole_is_said(browser: Any, folder: Path, tmp_path: Path) -> None:
    for name, says in (("image.onnx", "404"), ("manifest.json", "404"), ("ort/ort.wasm.bundle.min.mjs", "The model cannot be loaded")):
        broken = shutil.copytree(folder, tmp_path / name.replace("/", "."))
        (broken / name).unlink()
        with served(broken) as place:
            page = browser.new_page()
            page.goto(place)
            page.locator("#status.error", has_text=says).wait_for(timeout=PATIENCE)
            page.close()
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    page.get_by_text("was not opened through a web server").wait_for(timeout=PATIENCE)
    page.close()


@pytest.fixture(scope="module")
def plain(browser: Any, address: str) -> Iterator[Any]:
    """A page of the same server that loads no network, to ask the scripts one by one."""
    page = browser.new_page()
    page.goto(f"{address}page/style.css")
    yield page
    page.close()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_pixels_are_those_of_python(plain: Any, interpolation: str) -> None:
    size = 48
    own = Preprocess(size, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), interpolation)
    random = np.random.default_rng(0)
    code = """async ([content, size, interpolation]) => {
        const { normalised, square } = await import("/page/image.js");
        const bytes = await square(new Blob([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))]), size, interpolation);
        const values = normalised(bytes, [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]);
        return btoa(String.fromCharCode(...bytes)) + " " + btoa(String.fromCharCode(...new Uint8Array(values.buffer)));
    }"""
    for width, height in SIZES:
        image, file = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)), io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        found = plain.evaluate(code, [base64.b64encode(file.getvalue()).decode(), size, interpolation])
        pixels, values = map(base64.b64decode, found.split())
        planes = np.frombuffer(pixels, np.uint8).reshape(size, size, 3).transpose(2, 0, 1)
        assert np.array_equal(planes, own.central(image)), (width, height)
        assert np.array_equal(np.frombuffer(values, np.float32).reshape(3, size, size), own.test(image).numpy())


def test_tokens_are_those_of_python(plain: Any) -> None:
    own = open_clip.SimpleTokenizer()
    merges = [" ".join(pair) for pair in sorted(own.bpe_ranks, key=own.bpe_ranks.__getitem__)]
    code = """async ([merges, texts]) => {
        const { Tokenizer } = await import("/page/tokenizer.js");
        const tokenizer = new Tokenizer(merges);
        return texts.map((text) => tokenizer.encode(text));
    }"""
    for text, found in zip(TEXTS, plain.evaluate(code, [merges, TEXTS]), strict=True):
        assert found == [own.sot_token_id, *own.encode(text), own.eot_token_id], text


def test_names_are_one_as_in_python(plain: Any) -> None:
    names = ["ısı", "isi", "ISI", "İSİ", "ß", "ẞ", "SS", "Σας", "σαΣ", "ſ_s", "S  s", "ǅ", "ᾳ", "ŉ", "Ꭰ", "ꭰ"]
    keys = plain.evaluate("""async (names) => names.map((await import("/page/names.js")).nameKey)""", names)
    for (one, a), (two, b) in combinations(zip(names, keys, strict=True), 2):
        assert (a == b) == (name_key(one) == name_key(two)), (one, two)


def test_a_trained_name_in_another_spelling_is_read(plain: Any) -> None:
    code = """async () => {
        const { Classifier } = await import("/page/model.js");
        const inputs = [{ name: "tokens", templates: ["a {}"], underscores: false }];
        const text = { file: "text.onnx", output: "features", context_length: 8, inputs };
        const manifest = { class_names: ["straße", "haus"], kind: "full", text, files: { "text.onnx": {} } };
        const own = new Classifier(new URL(document.baseURI), manifest);
        Object.assign(own, { rows: ["of straße", "of haus"], tokenizer: { encode: () => [1, 2] } });
        own.work.ask = async () => ({ features: { data: "read" } });
        return own.head(["haus", "STRASSE", "neu"]);
    }"""
    found = plain.evaluate(code)
    assert found["trained"] == [True, True, False] and found["rows"] == ["of haus", "read", "read"]


def test_the_folder_names_no_image_and_has_the_licence(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["calibration"]["keys"] == [] and "secret" not in json.dumps(manifest)
    assert sorted(path.name for path in (folder / "ort").iterdir()) == ["LICENSE", *sorted(ort_web.FILES)]
    assert "Microsoft" in (folder / "ort" / "LICENSE").read_text(encoding="utf-8")


def test_a_method_without_class_features_keeps_its_own_classes(browser: Any, folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    """Its image network puts out logits: here those of the brightness of red, green and blue."""
    place, size = shutil.copytree(folder, tmp_path / "page"), 32
    weights = np.array([[1, 0, 0, 0.2], [0, 1, 0, 0.3], [0, 0, 1, 0.1]], np.float32)
    shapes = {"pixels": (1, 3, size, size), "logits": (1, 4)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(np.array([2, 3]), "axes"), numpy_helper.from_array(weights, "weights")]
    graph = helper.make_graph(nodes, "colours", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    (place / "image.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    manifest |= {"kind": "trained", "text": None, "classes": None, "rule": None, "calibration": None, "no_text": HOSTILE}
    manifest["files"]["image.onnx"]["bytes"] = (place / "image.onnx").stat().st_size
    (place / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with served(place) as address:
        page = browser.new_page()
        page.goto(address)
        page.locator("#status", has_text="Ready").wait_for(timeout=PATIENCE)
        assert page.locator("#closed").inner_text() == f"New names cannot be typed: {HOSTILE}."
        assert not page.locator("#new").is_visible() and page.locator("#trained").is_disabled()
        page.set_input_files("#files", pictures)
        page.get_by_text("4 photos classified among 4 classes.").wait_for(timeout=PATIENCE)
        own = Preprocess(size, *(tuple(manifest["preprocess"][key]) for key in ("mean", "std")))
        for path, card in zip(pictures, answers(page), strict=True):
            wanted = (own.test(to_rgb(path)).mean((1, 2)) @ torch.from_numpy(weights)).softmax(0).tolist()
            assert np.allclose([share for _, share, _ in card], sorted(wanted, reverse=True), atol=TOLERANCE)
            assert card[0][0] == NAMES[int(np.argmax(wanted))]
        page.close()


def test_only_the_published_runtime_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="has no ort.wasm.bundle.min.mjs. Run `npm install onnxruntime-web@"):
        ort_web.ort_files(tmp_path)
    for name in ort_web.FILES:
        (tmp_path / name).write_bytes(b"other")
    with pytest.raises(UsageError, match="is not that of onnxruntime-web@"):
        ort_web.ort_files(tmp_path)
    archive = tmp_path / "x.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / next(iter(ort_web.FILES)), "package/dist/ort.wasm.bundle.min.mjs")
    with pytest.raises(UsageError, match="its SHA-512 is another"):
        ort_web.ort_files(archive)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UsageError, match="npm, which fetches it, is not here. On a machine that has npm: Run `npm install"):
        ort_web.ort_files()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'npm error 404 none' >&2; exit 1", "npm could not fetch .*npm error 404 none"),
        ("echo x > a.tgz", "something else than the published"),
    ],
)
def test_what_npm_does_wrong_is_one_message(script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(MmrlError, match=says):
        ort_web.ort_files()
    assert not (tmp_path / "cache").exists()
