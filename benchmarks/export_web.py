"""A page made by `mmrl export --to web` in headless Chromium, against `Classifier` in Python on one thread: sizes, seconds, differences.

    python -m benchmarks.export_web --backbones tiny,ViT-B-16

The photo has 1200 x 900 pixels. The page is loaded from this machine, so that *load* has no network in it: it is reading the files,
and what ONNX Runtime does before the first photo. Needs the extra `export`, playwright, Chromium and, once, npm.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import io
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import common
from mmrl import methods
from mmrl.classifier.predictor import Classifier
from mmrl.clip import load_clip
from mmrl.export import export_adapter

NEW = "wolverine"
COLUMNS = [
    "backbone", "folder", "image.onnx", "text.onnx", "load", "first photo", "a photo", "of Python's", "first new name", "a new name",
    "differs by",
]  # fmt: skip
IN_PAGE = """async ([photo, name, repeats]) => {
    const { Classifier } = await import("/page/model.js");
    const file = new Blob([Uint8Array.from(atob(photo), (letter) => letter.charCodeAt(0))]);
    const timed = async (run) => {
        const start = performance.now();
        const found = await run();
        return [found, (performance.now() - start) / 1000];
    };
    const [made, load] = await timed(async () => {
        const made = await Classifier.open(new URL("/", location.href), () => {});
        await made.load();
        return made;
    });
    const [features, first] = await timed(() => made.look(file));
    const photos = [], names = [];
    for (let at = 0; at < repeats; at++) photos.push((await timed(() => made.look(file)))[1]);
    const [head, named] = await timed(() => made.head([...made.trained, name]));
    for (let at = 0; at < repeats; at++) names.push((await timed(() => made.head([...made.trained, `${name} ${at}`])))[1]);
    return { load, first, photos, named, names, answer: made.rank(features, head, head.names.length) };
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *words: object) -> None: ...


def photo() -> Image.Image:
    """Coloured noise, smooth as a photo is."""
    small = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((1200, 900), Image.Resampling.BICUBIC)


def in_browser(folder: Path, content: bytes, repeats: int) -> dict[str, Any]:
    """Seconds and the answer of the page in `folder`."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as tool:
            browser = tool.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.set_default_timeout(0)
            page.goto(f"http://127.0.0.1:{server.server_port}/page/style.css")
            found: dict[str, Any] = page.evaluate(IN_PAGE, [base64.b64encode(content).decode(), NEW, repeats])
            browser.close()
        server.shutdown()
    return found


def measured(backbone: str, options: argparse.Namespace) -> dict[str, Any]:
    """Sizes, seconds and the largest difference of a probability."""
    clip = load_clip(backbone, device="cpu") if backbone == "tiny" else common.make_clip(backbone)
    names = common.class_names(options.classes)
    classifier = Classifier(methods.build("mmrl", clip, {}, seed=1), trained=names, template=common.TEMPLATE)
    file = io.BytesIO()
    photo().save(file, "PNG")
    with tempfile.TemporaryDirectory() as temporary:
        made = export_adapter(classifier, Path(temporary) / "page", to="web", ort=options.ort)
        sizes = {path.name: path.stat().st_size for path in made.folder.rglob("*") if path.is_file()}
        page = in_browser(made.folder, file.getvalue(), options.repeats)
    (wanted,) = classifier.rank(file.getvalue(), [*names, NEW], top=len(names) + 1)
    python = common.interleaved({"rank": lambda: classifier.rank(file.getvalue())}, options.repeats)["rank"]
    shares = {each["name"]: each["probability"] for each in page.pop("answer")}
    worst = max(abs(shares[each.name] - each.probability) for each in wanted)
    return {"backbone": backbone, "sizes": sizes, "bytes": sum(sizes.values()), **page, "python": python, "difference": worst}


def row_of(found: dict[str, Any]) -> list[str]:
    own, python = common.median(found["photos"]), common.median(found["python"])
    mega = [f"{count / 1e6:.1f} MB" for count in (found["bytes"], found["sizes"]["image.onnx"], found["sizes"]["text.onnx"])]
    seconds = [f"{value:.2f} s" for value in (found["load"], found["first"], own)]
    named = [f"{value:.2f} s" for value in (found["named"], common.median(found["names"]))]
    return [found["backbone"], *mega, *seconds, f"{own / python:.1f} x", *named, f"{found['difference']:.1g}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="tiny,ViT-B-16", help="tiny, or architectures of open_clip with random weights")
    parser.add_argument("--classes", type=int, default=10, help="trained classes (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="photos and names behind the first (default: %(default)s)")
    parser.add_argument("--ort", type=Path, help="as of mmrl export")
    parser.add_argument("--out", type=Path, help="write the table there as Markdown, and all numbers beside it as .json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measured(each, options) for each in options.backbones.split(",")]
    about = common.about(options)
    where = f"{about['processor']}, {about['cores']} cores, headless Chromium, one thread; MMRL, {options.classes} trained classes"
    text = f"{where}; a photo and a new name: median of {options.repeats}.\n\n{common.markdown(COLUMNS, [row_of(each) for each in found])}"
    numbers = {"about": {key: str(value) for key, value in about.items() if key != "ort"}, "runs": found}
    common.report("# A page that classifies photos", text, numbers, options.out)


if __name__ == "__main__":
    main()
