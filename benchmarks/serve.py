"""`mmrl serve` under load: 200 clients of locust against batch prediction on the same images, and what an end and a kill lose.

    python -m benchmarks.serve                      # 5 minutes of load, and two runs of half a minute
    python -m benchmarks.serve --minutes 2 --out benchmarks/results/serve.md

The clients ask without a pause: JSON, raw images, forms and KServe's protocol, of several class lists and adapters, and one request in ten
cannot be served (broken images, malformed JSON, 10,000 classes, ...). Every answer is compared with `Classifier.rank`. Batch prediction is
`Classifier.rank` on the same JPEGs in memory (about 500 x 375 pixels), 64 at a time, decoding included, alone before and after the load,
with as many threads of torch. Locust takes processor, too: beside images a second there are processor seconds an image of both sides.

Then the load again, and SIGTERM in the midst of it; and with two processes, of which one is killed (-9).
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.test_pipeline import photo
from mmrl import methods
from mmrl.api import from_pretrained, zero_shot
from mmrl.classifier.predictor import Classifier
from mmrl.clip import load_clip

ROOT = Path(__file__).parents[1]
OWN = ("red panda", "badger", "pine marten", "otter", "lynx")
IMAGES, BATCH = 48, 64
WARM, SHORT = 15.0, 30.0  # seconds
JSON = {"Content-Type": "application/json"}
JPEG = {"Content-Type": "image/jpeg"}
EDGE = "a-line-between-parts"


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    log: Path

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return str(answer.read().decode())

    def images(self) -> float:
        return sum(float(found) for found in re.findall(r"^mmrl_images_total\{.*\} (\S+)$", self.get("/metrics"), re.MULTILINE))

    def mean_batch(self) -> float:
        text = self.get("/metrics")
        total, count = (float(re.findall(rf"^mmrl_batch_images_{what} (\S+)$", text, re.MULTILINE)[0]) for what in ("sum", "count"))
        return total / max(count, 1)

    def children(self) -> list[int]:
        own = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(each) for each in own if "spawn_main" in Path(f"/proc/{each}/cmdline").read_text()]

    def processor_seconds(self) -> float:
        """Of the server and what it has started."""
        ticks = 0
        for pid in (self.process.pid, *self.children()):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Resident bytes."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (self.process.pid, *self.children()))
        return pages * os.sysconf("SC_PAGE_SIZE")

    def logged(self) -> int:
        """Requests with images in them that the log says were answered."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return sum(line["message"] == "request" and line["method"] == "POST" and line["status"] < 499 for line in lines)


@contextmanager
def served(folder: Path, options: argparse.Namespace, *more: str) -> Iterator[Server]:
    words = [f"first={folder / 'first'}", f"second={folder / 'second'}", "zero-shot", "--port", "0", "--threads", str(options.threads)]
    log = folder / f"log{time.monotonic_ns()}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, "-m", "mmrl", "serve", *words, "--device", "cpu", *more]
    with log.open("w") as errors, subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.search(r"http://\S+", line)
            if not found:
                raise SystemExit(f"the server did not start: {log.read_text()}")
            yield Server(process, found[0], log)
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def users(server: Server, folder: Path, options: argparse.Namespace, seconds: float) -> Iterator[dict[str, Any]]:
    """Locust's clients for as long; what they counted is in the dictionary after the block."""
    found: dict[str, Any] = {}
    place = folder / "found.json"
    place.unlink(missing_ok=True)
    words = ["-f", str(ROOT / "benchmarks" / "serve_users.py"), "--headless", "-u", str(options.users), "-r", str(options.users)]
    words += ["--run-time", f"{int(seconds)}s", "--stop-timeout", "30", "--host", server.url, "--only-summary", "--loglevel", "ERROR"]
    environment = {**os.environ, "BENCHMARK_CASES": str(folder / "cases.json"), "BENCHMARK_FOUND": str(place)}
    command = [sys.executable, "-m", "locust", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        yield found
        said, _ = run.communicate()
    if not place.exists():
        raise SystemExit(f"locust failed: {said.decode()[-2000:]}")
    found.update(json.loads(place.read_text()))
    for line in said.decode().splitlines():
        if line.startswith("wrong: "):
            print(line)


def cases(folder: Path, images: Sequence[bytes]) -> list[dict[str, Any]]:
    """Requests with what should be answered; nine of ten, by weight, can be."""
    lists: list[tuple[str, ...] | None] = [None, ("badger", "wolverine"), tuple(common.class_names(40)), tuple(common.class_names(8))]
    asked = [("first", lists[0]), ("first", lists[1]), ("second", lists[2]), ("second", None), ("zero-shot", lists[3])]
    clip = load_clip("tiny", device="cpu")
    own = {name: from_pretrained(folder / name, backbone=clip) for name in ("first", "second")} | {"zero-shot": zero_shot(clip)}
    found = []
    for name, classes in asked:
        rows = own[name].rank(list(images), classes, top=99)
        for at, (image, row) in enumerate(zip(images, rows)):
            expected = {each.name: each.probability for each in row}
            path, headers, body = form(at % 4, name, image, classes)
            found.append(case(f"good: {('JSON', 'raw', 'form', 'KServe')[at % 4]}", path, headers, body, 200, expected, 0.9 / (5 * IMAGES)))
    bad = [
        ("/models/first", JPEG, images[0][:-2000], 422), ("/models/first", JPEG, b"no image", 422), ("/models/first", JPEG, b"", 400),
        ("/", JSON, b'{"inputs": ', 400), ("/", JSON, b"{}", 422), ("/models/none", JPEG, images[1], 404),
        ("/", JSON, json.dumps({"inputs": "http://127.0.0.1/x.jpg"}).encode(), 400), ("/", {"Content-Type": "text/html"}, images[2], 415),
        ("/", JSON, form_json(images[3], [str(at) for at in range(10_000)]), 413), ("/", JSON, form_json(images[4], ["a", "A"]), 422),
        ("/", JSON, form_json(images[5], ["word " * 200]), 422), ("/v2/models/first/infer", JSON, b'{"inputs": []}', 422),
    ]  # fmt: skip
    return found + [case(f"bad: {status}", path, headers, body, status, None, 0.1 / len(bad)) for path, headers, body, status in bad]


def case(kind: str, path: str, headers: dict[str, str], body: bytes, status: int, expected: Any, weight: float) -> dict[str, Any]:
    encoded = base64.b64encode(body).decode()
    return {"kind": kind, "path": path, "headers": headers, "body": encoded, "status": status, "expected": expected, "weight": weight}


def form_json(image: bytes, classes: Sequence[str] | None) -> bytes:
    parameters = {} if classes is None else {"candidate_labels": list(classes)}
    return json.dumps({"inputs": base64.b64encode(image).decode(), "parameters": parameters}).encode()


def form(kind: int, name: str, image: bytes, classes: Sequence[str] | None) -> tuple[str, dict[str, str], bytes]:
    """Address, headers and body: JSON, a raw image, a form, or KServe's protocol."""
    if kind == 0:
        return f"/models/{name}", JSON, form_json(image, classes)
    if kind == 1:
        query = "&".join(f"candidate_labels={each.replace(' ', '%20')}" for each in classes or ())
        return f"/models/{name}?{query}", JPEG, image
    if kind == 2:
        parts = [f'name="candidate_labels"\r\n\r\n{each}\r\n'.encode() for each in classes or ()]
        parts.append(b'name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' + image + b"\r\n")
        body = b"".join(f"--{EDGE}\r\nContent-Disposition: form-data; ".encode() + part for part in parts) + f"--{EDGE}--\r\n".encode()
        return f"/models/{name}", {"Content-Type": f"multipart/form-data; boundary={EDGE}"}, body
    tensors = [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(image).decode()]}]
    if classes:
        tensors.append({"name": "candidate_labels", "shape": [len(classes)], "datatype": "BYTES", "data": list(classes)})
    return f"/v2/models/{name}/infer", JSON, json.dumps({"inputs": tensors}).encode()


def direct(classifier: Classifier, images: Sequence[bytes], seconds: float) -> tuple[float, float]:
    """Images a second, and processor seconds an image, of batch prediction."""
    batch = [images[at % len(images)] for at in range(BATCH)]
    classifier.rank(batch)
    wall, used, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        classifier.rank(batch)
        count += BATCH
    return count / (time.perf_counter() - wall), (time.process_time() - used) / count


def steady(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Minutes of load on one process."""
    seconds = 60 * options.minutes
    with served(folder, options) as server, users(server, folder, options, seconds + WARM) as found:
        time.sleep(WARM)
        wall, used, images = time.perf_counter(), server.processor_seconds(), server.images()
        memory = [server.memory()]
        while time.perf_counter() - wall < seconds - 5:
            time.sleep(2)
            memory.append(server.memory())
        took, done = time.perf_counter() - wall, server.images() - images
        found["images_per_second"], found["processor_seconds"] = done / took, (server.processor_seconds() - used) / done
        found["processors"], found["batch"] = (server.processor_seconds() - used) / took, server.mean_batch()
        found["memory"] = memory
    return found


def ended(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """SIGTERM in the midst of the load: requests that the server had read, and those that it answered."""
    with served(folder, options) as server, users(server, folder, options, SHORT) as found:
        time.sleep(SHORT / 2)
        inside = float(re.findall(r"^mmrl_queue_images (\S+)$", server.get("/metrics"), re.MULTILINE)[0])
        began = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        found["code"], found["seconds"], found["inside"] = server.process.wait(), time.perf_counter() - began, inside
        found["answered"] = server.logged()
    return found


def killed(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """kill -9 of one of two processes in the midst of the load."""
    with served(folder, options, "--workers", "2") as server, users(server, folder, options, 2 * SHORT) as found:
        time.sleep(SHORT / 2)
        before = server.children()
        began = time.perf_counter()
        os.kill(before[0], signal.SIGKILL)
        while len(set(server.children()) - {before[0]}) < 2:
            time.sleep(0.1)
        found["seconds"] = time.perf_counter() - began
    return found


def percentile(times: Sequence[Sequence[float]], share: float) -> float:
    """Milliseconds that this share of the answers took at most; `times` are sorted pairs of milliseconds and how many."""
    wanted, seen = share * sum(count for _, count in times), 0.0
    for ms, count in times:
        seen += count
        if seen >= wanted:
            return float(ms)
    return 0.0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=5, help="of load (default: %(default)s)")
    parser.add_argument("--users", type=int, default=200, help="clients at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on both sides (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the table there as Markdown, and all numbers beside it as .json")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = load_clip("tiny", device="cpu")
        for seed, which in enumerate(("first", "second"), 1):
            Classifier(methods.build("mmrl", clip, seed=seed), trained=OWN).save_pretrained(folder / which)
        images = []
        for at in range(IMAGES):
            photo(at).save(folder / "photo.jpg", quality=90)
            images.append((folder / "photo.jpg").read_bytes())
        (folder / "cases.json").write_text(json.dumps(cases(folder, images)))
        classifier = from_pretrained(folder / "first", backbone=clip)
        first = direct(classifier, images, WARM)
        load = steady(folder, options)
        last = direct(classifier, images, WARM)
        end, kill = ended(folder, options), killed(folder, options)
    numbers = {"direct": [first, last], "load": load, "end": end, "kill": kill}
    title = f"mmrl serve: tiny, {options.users} clients, {options.minutes:g} minutes; {options.threads} thread of torch"
    about = common.about(options)
    where = f"{about['processor']}, {about['cores']} cores, torch {about['torch']}"
    common.report(f"{title}; {where}.", table(numbers), about | numbers, options.out)
    return int(any(each["counts"].get("wrong", 0) for each in (load, end, kill)))


def table(numbers: dict[str, Any]) -> str:
    load, end, kill = (numbers[each] for each in ("load", "end", "kill"))
    rate = sum(each[0] for each in numbers["direct"]) / 2
    processor = sum(each[1] for each in numbers["direct"]) / 2
    counts, memory = load["counts"], load["memory"]
    third = max(1, len(memory) // 3)
    rows = [
        ["batch prediction alone, images a second (before, after)", ", ".join(f"{each[0]:.0f}" for each in numbers["direct"])],
        ["the server, beside locust", f"{load['images_per_second']:.0f}"],
        ["ratio", f"{load['images_per_second'] / rate:.2f}"],
        ["processor milliseconds an image: batch prediction", f"{1000 * processor:.2f}"],
        ["the server (refusing what is bad included)", f"{1000 * load['processor_seconds']:.2f}"],
        ["ratio in processor time", f"{processor / load['processor_seconds']:.2f}"],
        ["processors that the server had", f"{load['processors']:.2f}"],
        ["images a batch, mean", f"{load['batch']:.1f}"],
        ["milliseconds for an answer: half, 99 %", f"{percentile(load['ms'], 0.5):.0f}, {percentile(load['ms'], 0.99):.0f}"],
        ["answers: right, refused as they should, wrong", counted(counts, "good, right", "bad, refused as they should", "wrong")],
        ["429, connections lost, never answered", counted(counts, "429", "connections that ended without an answer", "never answered")],
        ["memory, first and last third, mean", f"{mean(memory[:third]) / 2**20:.0f}, {mean(memory[-third:]) / 2**20:.0f} MiB"],
        ["SIGTERM: images inside, seconds to the end, exit code", f"{end['inside']:.0f}, {end['seconds']:.1f}, {end['code']}"],
        ["SIGTERM: answers that the server logged, that clients had", f"{end['answered']}, {end['counts'].get('answers', 0)}"],
        ["SIGTERM: wrong", counted(end["counts"], "wrong")],
        ["kill -9: connections lost, asked again and answered", counted(kill["counts"], *LOST)],
        ["kill -9: wrong, never answered", counted(kill["counts"], "wrong", "never answered")],
        ["kill -9: seconds until another process was there", f"{kill['seconds']:.1f}"],
    ]
    return common.markdown(["measured", "number"], rows)


LOST = ("connections that ended without an answer", "asked again and answered")


def counted(counts: dict[str, int], *names: str) -> str:
    return ", ".join(f"{counts.get(name, 0):,}" for name in names)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())
