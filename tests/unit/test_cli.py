"""The command line as a user meets it: what it prints, where errors go, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrl import methods
from tests.trees import make_tree
from tests.unit.conftest import Cli


def test_train_eval_predict_on_a_folder_of_photos(cli: Cli, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("--data", photos, "--shots", 2, "--out", out, "--set", "epochs=3", "--set", "batch_size=2", "--quiet")
    code, printed, _ = cli("train", *arguments)
    assert code == 0 and "zero-shot" in printed and "all classes" in printed
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "run.json", "draw.json"} <= {p.name for p in out.iterdir()}
    code, printed, _ = cli("eval", out, "--data", photos, "--json")
    record = json.loads(printed)
    (test,), kept = record["tests"], json.loads((out / "run.json").read_text())
    assert code == 0 and test["seen"] is True and test["classifier"] == "fused on 2 classes that were trained on"
    assert record["schema"] == "mmrl.run/2" and record["training"] == kept["training"]
    assert test["scores"] == kept["tests"][0]["scores"] and test["zero_shot"] == kept["tests"][0]["zero_shot"]  # one way to score
    image = photos / "red_thing" / "0.jpg"
    code, printed, _ = cli("predict", out, image, "--classes", "red thing,blue thing,green thing", "--json")
    predictions = json.loads(printed)["predictions"]
    assert code == 0 and {p["name"]: p["trained"] for p in predictions} == {"red thing": True, "blue thing": True, "green thing": False}
    names = tmp_path / "names.txt"
    names.write_text("red thing\ngreen thing\n")
    code, printed, _ = cli("predict", out, photos / "red_thing", "--classes", names)
    assert code == 0 and printed.count("green thing") == 8


def test_zero_shot_needs_no_run(cli: Cli, photos: Path) -> None:
    code, printed, _ = cli("predict", "zero-shot", photos / "red_thing" / "0.jpg", "--classes", "red,blue", "--template", "a {} picture.")
    assert code == 0 and "red" in printed
    code, printed, _ = cli("eval", "zero-shot", "--data", photos)
    assert code == 0 and "classifier" not in printed
    assert printed.count("zero-shot") == 2  # of the scores, and the head of a column of the classes


def test_broken_photos_are_skipped_when_asked(cli: Cli, photos: Path, tmp_path: Path) -> None:
    import shutil

    root, out = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos, root)
    for image in sorted((root / "red_thing").iterdir())[2:]:
        image.write_bytes(b"nothing")
    train = ("train", "--data", root, "--shots", 0, "--set", "epochs=2", "--set", "batch_size=2", "--quiet")
    code, _, err = cli(*train, "--out", tmp_path / "refused")
    assert code == 2 and "red_thing" in err
    code, _, err = cli(*train, "--out", out, "--skip-broken", "--template", "a {}.", "--template", "a photo of a {}.")
    kept = json.loads((out / "run.json").read_text())
    assert code == 0 and "warning: " in err and "left out" in err
    assert kept["training"]["template"] == ["a {}.", "a photo of a {}."]
    assert any("left out, missing or broken" in text for text in kept["training"]["warnings"])
    code, printed, err = cli("eval", out, root, "--skip-broken")
    assert code == 0 and "10 images trained it, and no other is left, so this is what it remembers" in printed, err
    (out / "draw.json").unlink()
    code, _, err = cli("eval", out, "--data", root)
    assert code == 2 and "red_thing" in err
    code, printed, err = cli("eval", out, "--data", root, "--skip-broken", "--json", "--workers", 2)
    (said,) = [text for text in json.loads(printed)["tests"][0]["warnings"] if "left out" in text]
    assert code == 0 and said in err and "red_thing" in said
    code, printed, err = cli("predict", out, root / "red_thing", "--skip-broken", "--json")
    counts = {Path(line["image"]).name: len(line["predictions"]) for line in map(json.loads, printed.splitlines())}
    assert code == 0 and counts == {f"{i}.jpg": 2 if i < 2 else 0 for i in range(8)}
    assert err.count("is not an image that can be read") == 6 and str(root / "red_thing" / "7.jpg") in err
    code, printed, err = cli("predict", out, root / "red_thing" / "7.jpg", root / "red_thing" / "6.jpg", "--skip-broken")
    assert code == 2 and "none of the 2 images can be read" in err
    code, printed, err = cli("predict", out, root / "red_thing" / "7.jpg")
    assert code == 2 and err.endswith("Give one that can be read.\n") and "--skip-broken" not in err


def test_listings(cli: Cli) -> None:
    code, printed, _ = cli("methods", "mmrl", "--json")
    assert code == 0 and json.loads(printed)["mmrl"]["options"]["rep_tokens"]["default"] == 5
    code, printed, _ = cli("data", "list")
    assert code == 0 and "mini:digits" in printed
    code, printed, _ = cli("config", "show", "--method", "mmrl", "--data", "dtd", "--set", "alpha=0.5")
    assert code == 0 and "command line" in printed
    code, printed, _ = cli("config", "show", "--data", "dtd", "--json")
    assert {s["key"]: s["value"] for s in json.loads(printed)}["lam"] == 6
    assert cli("--version")[1].strip()


def test_methods_in_short_and_in_full(cli: Cli) -> None:
    code, short, _ = cli("methods")
    rows = [line.split() for line in short.splitlines()]
    first = [row[0] for row in rows if row and row[0] in methods.names()]
    assert code == 0 and first == methods.names() and "Table 9" not in short and len(rows) < 2 * len(first) + 4
    assert next(row for row in rows if row[0] == "ape")[-5:] == ["no", "closed", "form", "ICCV", "2023"]
    code, printed, _ = cli("methods", "mmrl", "gda")
    assert code == 0 and "Table 9" in printed and "Guo and Gu, CVPR 2025" in printed and printed.index("rep_dim") < printed.index("gda")
    code, printed, _ = cli("methods", "--options")
    assert code == 0 and all(word in printed for word in ("zero-shot", "mmrlpp", "beta", "Table 9"))
    assert list(json.loads(cli("methods", "--json")[1])) == methods.names()


def test_methods_are_in_the_order_of_their_kind_and_year() -> None:
    ours = [name for name, cls in methods.registered().items() if cls.__module__.startswith("mmrl.")]
    assert ours[0] == "zero-shot" and ours[1] == "linear-probe" and ours[-2:] == ["mmrl", "mmrlpp"]
    kinds = [methods.get(name).trained_by() for name in ours]
    assert kinds == sorted(kinds, key=["nothing", "closed form", "steps"].index) and kinds.count("nothing") == 1
    for kind in set(kinds):
        years = [methods.get(name).source[-4:] for name in ours if methods.get(name).trained_by() == kind]
        assert years == sorted(years) and all(year.isdigit() for year in years)


def test_another_run_is_not_overwritten_and_a_finished_one_resumes(cli: Cli, photos: Path, trained: Path) -> None:
    before = (trained / "adapter_model.safetensors").read_bytes()
    same = ("--data", photos, "--shots", 2, "--out", trained, "--set", "epochs=2", "--set", "batch_size=2", "--quiet")
    code, _, err = cli("train", *same)
    assert code == 2 and "resume" in err and "Traceback" not in err
    code, _, err = cli("train", *same, "--resume", "--set", "lr=0.1")
    assert code == 2 and "lr" in err
    code, _, _ = cli("train", *same, "--resume")
    assert code == 0 and (trained / "adapter_model.safetensors").read_bytes() == before


def test_import_of_the_authors_checkpoint(cli: Cli, photos: Path, tmp_path: Path) -> None:
    from mmrl import methods
    from mmrl.clip import load_clip
    from tests.unit.test_import_authors import authors_state, write

    method = methods.build("mmrlpp", load_clip("tiny"), {"rep_dim": 16, "first_layer": 5}, seed=0)
    checkpoint = write(tmp_path / "model.pth.tar-10", authors_state(method), tmp_path / "executed")
    arguments = ("import-checkpoint", checkpoint, "--classes", "red thing,blue thing", "--out", tmp_path / "adapter")
    code, printed, err = cli(*arguments, "--backbone", "tiny", "--set", "beta=0.9")
    assert code == 0 and "mmrlpp" in printed and "2 classes" in printed, err
    assert not (tmp_path / "executed").exists()
    code, printed, _ = cli("predict", tmp_path / "adapter", photos / "red_thing" / "0.jpg", "--json")
    assert code == 0 and len(json.loads(printed)["predictions"]) == 2
    code, _, err = cli("import-checkpoint", tmp_path / "none.tar", "--classes", "a,b", "--out", tmp_path / "o", "--backbone", "tiny")
    assert code == 1 and "none.tar" in err and "Traceback" not in err


BAD = [
    (("train", "--method", "mmlr", "--data", "{photos}", "--out", "{tmp}/o"), "unknown method 'mmlr'. Did you mean 'mmrl'"),
    (("train", "--data", "mini:digit", "--out", "{tmp}/o"), "mini:digits"),
    (("train", "--data", "{tmp}/nowhere", "--out", "{tmp}/o"), "does not exist"),
    (("train", "--data", "{tmp}", "--out", "{tmp}/o"), "one subfolder per class"),
    (("train", "--data", "{photos}", "--shots", "2", "--backbone", "ViT-B-17/openai", "--out", "{tmp}/o"), "Did you mean 'ViT-B-16'"),
    (("train", "--data", "{photos}", "--shots", "9", "--out", "{tmp}/o"), "shots is 9, but class"),
    (("train", "--data", "{photos}", "--out", "{tmp}/o", "--shots", "2", "--set", "first_layer=9"), "has 8 layers; give 1 to 8"),
    (("train", "--data", "{photos}", "--out", "{tmp}/o", "--shots", "2", "--set", "rep_tokens=0"), "rep_tokens is 0"),
    (("train", "--data", "{photos}", "--out", "{tmp}/o", "--shots", "2", "--set", "alpha=2"), "alpha is 2"),
    (("train", "--data", "{photos}", "--out", "{tmp}/o", "--shots", "2", "--set", "alhpa=0.5"), "did you mean 'alpha'"),
    (("train", "--data", "{photos}", "--out", "{tmp}/o", "--shots", "2", "--set", "alpha"), "expected KEY=VALUE"),
    (("train", "--data", "{photos}", "--out", "{tmp}/o", "--shots", "2", "--classes", "bse"), "base"),
    (("train", "--data", "{photos}", "--out", "{tmp}/o", "--shots", "2", "--template", "no place"), "exactly one {}"),
    (("predict", "{run}", "{photo}", "--template", "a {{}}", "--template", "a {{}}"), "stands twice"),
    (("train", "--data", "{photos}", "--shots", "2", "--out", "{tmp}/o", "--method", "zero-shot"), "nothing to train"),
    (("train", "--data", "{photos}", "--out", "{tmp}/o", "--method", "gda", "--set", "epochs=3"), "epochs has no effect on gda"),
    (("config", "show", "--method", "clap", "--set", "lr=1", "--set", "log=tensorboard"), "lr, log have no effect on clap"),
    (("predict", "{run}", "{tmp}/none.jpg"), "no such image"),
    (("predict", "{run}", "{tmp}/broken.png"), "broken.png"),
    (("predict", "{run}", "{tmp}"), "no images directly in it"),
    (("predict", "{run}", "{photo}", "--classes", "a,a"), "stands twice"),
    (("predict", "{run}", "{photo}", "--classes", "a,,b"), "blank"),
    (("predict", "{run}", "{photo}", "--classes", "{tmp}/none.txt"), "none.txt does not exist"),
    (("predict", "{tmp}", "{photo}"), "adapter_config.json"),
    (("eval", "nowhere"), "no adapter in 'nowhere'"),
    (("eval", "{tmp}/nowhere", "--data", "{photos}"), "neither a folder that exists nor a hub name"),
    (("predict", "{run}", "{photo}", "--backbone", "local-dir:{tmp}"), "no open_clip_config.json"),
    (("eval", "{run}"), "which is no dataset known by name; give its folder"),
    (("eval", "zero-shot", "--data", "dtd", "--root", "{tmp}/none"), "none does not exist"),
    (("train", "--data", "dtd", "--root", "{tmp}", "--out", "{tmp}/o"), "'dtd' is not in"),
    (("train", "--data", "dtd", "--out", "{tmp}/o"), "Pass it with --root"),
    (("eval", "{run}", "--data", "{photos}", "--split", "tset"), "Did you mean 'test'"),
    (("methods", "mmrlp"), "unknown method 'mmrlp'"),
    (("config", "show", "--protocol", "base"), "unknown protocol"),
    (("demo", "--seeds", "1,x", "--out", "{tmp}/demo"), "--seeds is '1,x'"),
    (("demo", "--data", "mini:digit", "--out", "{tmp}/demo"), "mini:digits"),
    (("train", "--nonsense",), "no such option: --nonsense"),
    (("train", "--data", "{photos}", "--out", "{tmp}/o", "--shots", "-1"), "--shots"),
    (("train", "--data", "{photos}", "--out", "{tmp}/o", "--shots", "2", "--device", "foo"), "device 'foo' is not known. Available: "),
    (("predict", "{run}", "{photo}", "--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
    (("predict", "zero-shot", "{photo}"), "or --classes on the command line"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a)[:60] for a, _ in BAD])
def test_a_users_mistake_is_one_message(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, photos: Path, trained: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.delenv("DATA", raising=False)
    if "broken.png" in " ".join(arguments):
        (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    places = {"photos": photos, "tmp": tmp_path, "run": trained, "photo": photos / "red_thing" / "0.jpg"}
    code, out, err = cli(*(a.format(**places) if "{" in a else a for a in arguments))
    assert code == 2, (out, err)
    assert message in err and "Traceback" not in err
    assert not (tmp_path / "o").exists() and not (tmp_path / "demo").exists()


def test_damaged_adapters_are_failures(cli: Cli, trained: Path, photos: Path, tmp_path: Path) -> None:
    import shutil

    photo = photos / "red_thing" / "0.jpg"
    for name, change, message in (
        ("adapter_model.safetensors", lambda b: b[:-100], "edited, cut or exchanged"),
        ("adapter_config.json", lambda b: b[:50], "damaged"),
        ("adapter_config.json", lambda b: b.replace(b'"alpha": 0.7', b'"alpha": "abc"'), "adapter_config.json: alpha is 'abc'"),
        ("adapter_config.json", lambda b: b.replace(b'"format": 3', b'"format": 99'), "later version"),
    ):
        folder = tmp_path / f"{name}-{message[:6]}"
        shutil.copytree(trained, folder)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        code, _, err = cli("predict", folder, photo)
        assert code == 1 and message in err and "Traceback" not in err


def test_no_permission_is_a_failure(cli: Cli, photos: Path) -> None:
    code, _, err = cli("train", "--data", photos, "--shots", 2, "--out", "/proc/nowhere/x", "--quiet")
    assert code == 1, err
    assert "/proc/nowhere" in err and "Traceback" not in err


def test_datasets_are_read_from_below_the_root(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_tree("eurosat", tmp_path / "data", raw=True)
    code, printed, _ = cli("eval", "zero-shot", "--data", "eurosat", "--root", tmp_path / "data", "--json")
    assert code == 0 and json.loads(printed)["tests"][0]["dataset"] == "eurosat"
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    settings = [word for setting in ("epochs=2", "batch_size=3", "rep_dim=16") for word in ("--set", setting)]
    code, _, err = cli("train", "--data", "eurosat", "--shots", 1, "--classes", "base", "--out", tmp_path / "run", "--quiet", *settings)
    assert code == 0, err
    code, printed, _ = cli("eval", tmp_path / "run", "--classes", "base", "--json")
    assert code == 0 and json.loads(printed)["tests"][0]["seen"] is True
    code, printed, _ = cli("data", "list")
    assert code == 0 and "eurosat  10 classes, 13500 / 5400 / 8100 images" in printed and "imagenet_a  200 classes, - / - / 7500" in printed
    code, printed, _ = cli("data", "list", "--json")
    assert {info["name"]: info["n_classes"] for info in json.loads(printed)}["imagenet"] == 1000
