"""MMRL's and MMRL++'s recipes against the authors' tables, the order in which values win, and recipes from outside the package."""

from __future__ import annotations

import json

import pytest

from mmrl.errors import UsageError
from mmrl.recipes import Resolved, at_test, publication, recipe_of, resolve

FIT = {"epochs": 10, "batch_size": 4, "lr": 1e-3, "weight_decay": 5e-4, "warmup_epochs": 1, "warmup_lr": 1e-5}
FIT |= {"precision": "fp32", "seed": 1}  # not in the recipes: each run's own
METHOD = ["rep_tokens", "rep_dim", "first_layer", "alpha", "lam", "beta", "layer_rank", "projection_rank"]
ALLOWED = {"method": dict.fromkeys(METHOD), "fit": FIT}
ELEVEN = ["imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"]
ELEVEN += ["fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"]


def get(method: str, protocol: str = "base-to-novel", dataset: str | None = None, **overrides: object) -> Resolved:
    return resolve(method, allowed=ALLOWED, protocol=protocol, dataset=dataset, overrides=overrides)


def source(resolved: Resolved, key: str) -> str:
    return next(setting.source for setting in resolved.settings if setting.key == key)


@pytest.mark.parametrize(
    ("method", "protocol", "dataset", "batch", "epochs", "warmup", "lr", "lam"),
    [
        ("mmrl", "base-to-novel", None, 4, 10, 1, 1e-3, 1.0),
        ("mmrlpp", "base-to-novel", None, 4, 10, 1, 1e-3, 1.0),
        ("mmrl", "base-to-novel", "imagenet", 32, 5, 1, 1e-3, 0.5),
        ("mmrl", "few-shot", "imagenet", 32, 5, 1, 1e-3, 0.5),
        ("mmrlpp", "few-shot", "imagenet", 32, 5, 1, 1e-3, 0.2),
        ("mmrl", "few-shot", None, 32, 50, 1, 1e-3, 0.5),
        ("mmrlpp", "few-shot", None, 32, 100, 1, 2e-3, 1.0),
        ("mmrl", "cross-dataset", "imagenet", 32, 1, 0, 1e-3, 0.2),
        ("mmrl", "domain-generalisation", "imagenet", 32, 1, 0, 1e-3, 0.2),
        ("mmrlpp", "cross-dataset", "imagenet", 32, 1, 0, 1e-3, 0.1),
        ("mmrlpp", "domain-generalisation", None, 32, 1, 0, 1e-3, 0.2),
    ],
)
def test_table_of_runs(method, protocol, dataset, batch, epochs, warmup, lr, lam):
    run = get(method, protocol, dataset)
    assert run.fit == FIT | {"batch_size": batch, "epochs": epochs, "warmup_epochs": warmup, "lr": lr}
    assert run.method["lam"] == lam


@pytest.mark.parametrize("protocol", ["base-to-novel", "few-shot"])
def test_lambda_of_mmrl_by_dataset(protocol):
    published = [0.5, 0.5, 0.2, 7, 4, 5, 6, 6, 6, 0.01, 3]
    assert [get("mmrl", protocol, name).method["lam"] for name in ELEVEN] == published


@pytest.mark.parametrize("protocol", ["base-to-novel", "few-shot"])
def test_beta_and_lambda_of_mmrlpp_by_dataset(protocol):
    published = {
        "imagenet": (0.9, 0.2), "fgvc_aircraft": (0.9, 2), "ucf101": (0.9, 3), "dtd": (0.9, 7), "oxford_pets": (0.7, 0.01),
        "stanford_cars": (0.7, 6), "caltech101": (0.6, 3), "sun397": (0.5, 3), "oxford_flowers": (0.4, 7), "eurosat": (0.2, 0.01),
        "food101": (0.1, 1),
    }  # fmt: skip
    got = {name: (get("mmrlpp", protocol, name).method["beta"], get("mmrlpp", protocol, name).method["lam"]) for name in ELEVEN}
    assert got == published
    assert get("mmrlpp", protocol, "mini:objects").method["beta"] == 0.9  # of the authors' train.py and every YAML


def test_sizes():
    assert get("mmrl", dataset="dtd").method == {"rep_tokens": 5, "rep_dim": 512, "first_layer": None, "alpha": 0.7, "lam": 6.0,
                                                 "beta": None, "layer_rank": None, "projection_rank": None}  # fmt: skip
    assert get("mmrl", dataset="eurosat").method["rep_dim"] == 2048
    plus = get("mmrlpp", dataset="dtd").method
    assert (plus["layer_rank"], plus["projection_rank"], plus["rep_dim"], plus["alpha"]) == (4, 64, 512, 0.7)


@pytest.mark.parametrize("dataset", [None, "mini:objects", "some/folder", "imagenet2"])
def test_other_data_get_the_protocol_s_values(dataset):
    assert get("mmrlpp", dataset=dataset).settings == get("mmrlpp").settings
    assert get("mmrl", "few-shot", dataset).method["lam"] == 0.5


def test_later_rules_win_and_keep_their_source():
    assert source(get("mmrl"), "lam") == "published MMRL configuration, base-to-novel"
    assert source(get("mmrl", "few-shot"), "lam") == "published MMRL configuration, few-shot"
    assert source(get("mmrl", "few-shot", "dtd"), "lam") == "published MMRL configuration, by dataset"
    chosen = get("mmrl", "few-shot", "dtd", lam=2.5, epochs=3)
    assert (chosen.method["lam"], chosen.fit["epochs"]) == (2.5, 3)
    assert source(chosen, "lam") == source(chosen, "epochs") == "command line"
    assert source(chosen, "seed") == "built-in default"
    assert source(chosen, "precision") == "built-in default (published: mixed precision (fp16) in training, float32 at test)"
    assert source(chosen, "first_layer") == "built-in default (published: layer 6 of 12; the same share of another depth)"
    assert source(get("mmrl", first_layer=2), "first_layer") == "command line"
    assert chosen.to_json()[0] == {"section": "method", "key": "rep_tokens", "value": 5, "source": "paper, supplement A"}


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_the_toy_s_source_set_makes_as_many_steps_as_the_published_run(method):
    for protocol in ("cross-dataset", "domain-generalisation"):
        run = get(method, protocol, "mini:objects")
        assert (run.fit["epochs"], run.fit["batch_size"]) == (50, 32) and source(run, "epochs").startswith("ours: ")


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_the_few_shot_batch_says_that_paper_and_code_differ(method):
    run = get(method, "few-shot", "dtd")
    assert run.fit["batch_size"] == 32 and "supplement A, says 4" in source(run, "batch_size")


def test_unknown_options_are_reported_together():
    with pytest.raises(UsageError) as error:
        get("mmrl", lamda=1, epoch=3, zzzz=0, alpha=0.5)
    message = str(error.value)
    assert "'lamda' (did you mean 'lam'?)" in message
    assert "'epoch' (did you mean 'epochs'?)" in message
    assert "'zzzz'" in message
    assert "'alpha'" not in message


def test_unknown_protocol_suggests_the_nearest():
    with pytest.raises(UsageError, match="base-to-novel"):
        get("mmrl", "base-to-new")


def test_a_method_without_recipe_has_built_in_defaults_alone():
    toy = resolve("toy", allowed={"method": ["width"], "fit": FIT}, overrides={"width": 3}, override_source="python call")
    assert (toy.method, toy.fit) == ({"width": 3}, FIT)
    assert {setting.source for setting in toy.settings} == {"python call", "built-in default"}
    assert resolve("zero-shot", allowed={"method": {}, "fit": FIT}, protocol="few-shot", dataset="imagenet").fit == FIT
    assert recipe_of("zero-shot") is None and publication("zero-shot", "few-shot") is None


def test_options_at_test_are_offered_but_never_applied():
    (beta,) = at_test("mmrlpp", "stanford_cars")
    assert (beta.section, beta.key, beta.value) == ("method", "beta", 0.3) and "target" in beta.source
    published = {
        "imagenet": 0.9, "fgvc_aircraft": 0.9, "ucf101": 0.9, "dtd": 0.5, "oxford_pets": 0.6, "stanford_cars": 0.3, "caltech101": 0.6,
        "sun397": 0.7, "oxford_flowers": 0.4, "eurosat": 0.3, "food101": 0.3,
        "imagenetv2": 0.9, "imagenet_r": 0.9, "imagenet_a": 0.8, "imagenet_sketch": 0.7,
    }  # fmt: skip
    assert {name: at_test("mmrlpp", name)[0].value for name in published} == published
    assert at_test("mmrlpp", "mini:objects") == at_test("mmrl", "dtd") == at_test("toy", "dtd") == ()
    assert get("mmrlpp", "cross-dataset", "imagenet").method["beta"] == 0.9
    assert get("mmrlpp", "cross-dataset", "stanford_cars").method["beta"] == 0.9


def test_at_most_lowers_one_value_and_says_why() -> None:
    resolved = resolve("mmrl", protocol="few-shot", allowed={"method": (), "fit": ("batch_size", "epochs")})
    lowered = resolved.at_most("batch_size", 10, "few images")
    assert (resolved.fit["batch_size"], lowered.fit) == (32, {**resolved.fit, "batch_size": 10})
    assert [s.source for s in lowered.settings if s.key == "batch_size"] == ["few images"]
    assert resolved.at_most("batch_size", 100, "many images") == resolved


# ---- recipes from outside the package ----

RULES = [
    {"source": "a paper", "method": {"width": 1}, "fit": {"epochs": 1}, "notes": {"seed": "published: 7"}},
    {"source": "by shots", "by_shots": {"2": {"method": {"width": 2}}, "8": {"method": {"width": 3}}}},
    {"source": "few-shot", "when": {"protocol": ["few-shot"]}, "method": {"width": 4}},
    {"source": "few-shot by shots", "when": {"protocol": ["few-shot"]}, "by_shots": {"4": {"method": {"width": 5}}}},
    {"source": "mini", "when": {"dataset": ["mini:*"]}, "method": {"width": 6}},
    {"source": "digits", "by_dataset": {"mini:digits": {"method": {"width": 7}}, "dtd": {"method": {"width": 8}}}},
    {"source": "digits, few-shot", "when": {"protocol": ["few-shot"], "dataset": ["mini:digits"]}, "method": {"width": 9}},
    {"source": "all", "when": {"protocol": ["few-shot"], "dataset": ["mini:digits"]}, "by_shots": {"16": {"method": {"width": 10}}}},
]  # fmt: skip
OUTSIDE = {"rules": RULES}


def outside(recipe: object = OUTSIDE, *, allowed: object = None, **run: object) -> Resolved:
    return resolve("toy", recipe=recipe, allowed=allowed or {"method": {"width": 0}, "fit": FIT | {"iterations": None}}, **run)


def test_precedence_from_the_default_to_the_user():
    ladder = [
        ("base-to-novel", None, 1, 1), ("base-to-novel", None, 2, 2), ("base-to-novel", None, 8, 3), ("few-shot", None, 2, 4),
        ("few-shot", None, 4, 5), ("few-shot", "mini:glyphs", 4, 6), ("base-to-novel", "mini:digits", 4, 7), ("few-shot", "dtd", 4, 8),
        ("few-shot", "mini:digits", 8, 9), ("few-shot", "mini:digits", 16, 10),
    ]  # fmt: skip
    for protocol, dataset, shots, width in ladder:
        assert outside(protocol=protocol, dataset=dataset, shots=shots).method == {"width": width}
    last = outside(protocol="few-shot", dataset="mini:digits", shots=16, overrides={"width": 11})
    assert (last.method, source(last, "width")) == ({"width": 11}, "command line")
    assert source(last, "seed") == "built-in default (published: 7)"
    assert outside(overrides={"seed": 3}).to_json()[-2]["source"] == "command line"


@pytest.mark.parametrize(("shots", "width"), [(1, 1), (2, 2), (3, 2), (7, 2), (8, 3), (100, 3), (0, 3), (None, 3)])
def test_other_numbers_of_shots_take_the_nearest_lower_one(shots, width):
    assert outside(shots=shots).method["width"] == width


def test_values_for_each_shot():
    recipe = {"rules": [{"source": "a paper", "per_shot": {"fit": {"iterations": 500}}, "by_shots": {"32": {"method": {"width": 1}}}}]}
    assert [outside(recipe, shots=n).fit["iterations"] for n in (1, 3, 16)] == [500, 1500, 8000]
    assert [outside(recipe, shots=n).fit["iterations"] for n in (0, None)] == [16_000, 16_000]  # as many as the recipe names
    assert [outside({"rules": [{"source": "a", "per_shot": {"fit": {"iterations": 5}}}]}, shots=0).fit["iterations"]] == [80]


def test_whoever_sets_epochs_takes_iterations_back():
    recipe = {"rules": [{"source": "a", "fit": {"iterations": 70}}, {"source": "b", "when": {"dataset": ["dtd"]}, "fit": {"epochs": 3}}]}
    assert outside(recipe).fit["iterations"] == 70
    assert (outside(recipe, dataset="dtd").fit["iterations"], outside(recipe, dataset="dtd").fit["epochs"]) == (None, 3)
    run = outside(recipe, overrides={"epochs": 5})
    assert (run.fit["iterations"], run.fit["epochs"], source(run, "iterations")) == (None, 5, "command line (epochs are given)")
    assert outside(recipe, overrides={"epochs": 5, "iterations": 6}).fit["iterations"] == 6
    assert source(outside(overrides={"epochs": 5}), "iterations") == "built-in default"


def test_a_recipe_in_a_file(tmp_path):
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(OUTSIDE | {"at_test": {"source": "a paper", "by_target": {"dtd": {"width": 12}}}}))
    assert outside(path, shots=2).settings == outside(shots=2).settings
    assert [(s.key, s.value, s.source) for s in at_test("toy", "dtd", path)] == [("width", 12, "a paper")]
    assert at_test("toy", "food101", path) == ()
    path.write_text("{")
    with pytest.raises(UsageError, match="recipe of toy is damaged: .*toy.json"):
        outside(path)
    with pytest.raises(UsageError, match="recipe of toy .*none.json does not exist"):
        outside(tmp_path / "none.json")


def test_the_recipe_given_wins_over_the_packaged_one():
    run = resolve(
        "mmrl", recipe={"rules": [{"source": "mine", "method": {"lam": 9}}]}, allowed={"method": {"lam": 0, "alpha": 0}, "fit": FIT}
    )
    assert (run.method, run.fit) == ({"lam": 9, "alpha": 0}, FIT)


def test_what_was_published_for_a_protocol():
    recipe = {
        "published_with": "ViT-B/16",
        "protocols": {
            "few-shot": {"published": True, "published_with": "4 shots"},
            "cross-dataset": {"published": False, "used_instead": "the few-shot values"},
        },
        "rules": [],
    }
    few, cross = publication("toy", "few-shot", recipe), publication("toy", "cross-dataset", recipe)
    assert few is not None and cross is not None
    assert (few.published, few.facts, few.used_instead) == (True, ("ViT-B/16", "4 shots"), "")
    assert (cross.published, cross.facts, cross.used_instead) == (False, ("ViT-B/16",), "the few-shot values")
    assert publication("toy", "base-to-novel", recipe) is None
    with pytest.raises(UsageError, match="unknown protocol 'fewshot'"):
        publication("toy", "fewshot", recipe)


ONE = {"source": "a paper", "method": {"width": 1}}
SOME = "is .*; it must be an object"


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ([], f"recipe of toy {SOME}"),
        ({}, "recipe of toy has no 'rules'"),
        ({"rules": {}}, "rules is {}; it must be a list of rules"),
        ({"rules": [], "rulez": []}, "recipe of toy: unknown key 'rulez'. Did you mean 'rules'"),
        ({"rules": [], "published_with": 3}, "published_with is 3; it must be text"),
        ({"rules": [ONE, 3]}, rf"rules\[1\] {SOME}"),
        ({"rules": [{"method": {"width": 1}}]}, r"rules\[0\] has no 'source'"),
        ({"rules": [ONE | {"source": " "}]}, r"rules\[0\].source is ' '; it must be text"),
        ({"rules": [{"source": "a paper"}]}, r"rules\[0\] has no values; give some in method, fit, by_dataset"),
        ({"rules": [ONE | {"fitt": {}}]}, r"rules\[0\]: unknown key 'fitt'. Did you mean 'fit'"),
        ({"rules": [ONE | {"method": 3}]}, rf"rules\[0\].method {SOME}"),
        ({"rules": [ONE | {"when": {"shots": [1]}}]}, r"rules\[0\].when: unknown key 'shots'. .*Known: dataset, protocol"),
        ({"rules": [ONE | {"when": {"protocol": "few-shot"}}]}, r"when.protocol is 'few-shot'; it must be a list of names"),
        ({"rules": [ONE | {"when": {"protocol": ["few"]}}]}, r"when.protocol: unknown protocol 'few'. Did you mean 'few-shot'"),
        ({"rules": [ONE | {"when": {"dataset": ["mi*ni"]}}]}, r"'mi\*ni' is no data set; .*'mini:\*'"),
        ({"rules": [ONE | {"when": {"dataset": ["*"]}}]}, r"'\*' is no data set"),
        ({"rules": [ONE | {"when": {"dataset": ["dtd"]}, "by_dataset": {"dtd": {"fit": {"epochs": 1}}}}]}, "exclude each other"),
        ({"rules": [ONE | {"by_dataset": {"dtd": {"width": 1}}}]}, r"by_dataset.dtd: unknown key 'width'.*Known: fit, method"),
        ({"rules": [ONE | {"by_shots": {"0": {}}}]}, r"by_shots: '0' is no number of shots"),
        ({"rules": [ONE | {"by_shots": {"all": {}}}]}, r"by_shots: 'all' is no number of shots"),
        ({"rules": [ONE | {"per_shot": {"fit": {"epochs": "5"}}}]}, r"per_shot.fit.epochs is '5'; it must be a number"),
        ({"rules": [ONE | {"per_shot": {"fit": {"epochs": True}}}]}, r"per_shot.fit.epochs is True; it must be a number"),
        ({"rules": [ONE | {"notes": {"width": 3}}]}, r"notes.width is 3; it must be text"),
        ({"rules": [ONE | {"notes": {"widht": "x"}}]}, r"notes: unknown option 'widht'. Did you mean 'width'"),
        ({"rules": [ONE | {"method": {"widht": 1}}]}, r"recipe of toy: unknown option of toy 'widht'. Did you mean 'width'"),
        ({"rules": [ONE | {"fit": {"epoch": 1}}]}, r"recipe of toy: unknown training option 'epoch'. Did you mean 'epochs'"),
        ({"rules": [ONE | {"fit": {"width": 1}}]}, r"unknown training option 'width'"),
        ({"rules": [], "protocols": {"few": {}}}, r"protocols: unknown protocol 'few'"),
        ({"rules": [], "protocols": {"few-shot": {}}}, r"protocols.few-shot has no 'published'"),
        ({"rules": [], "protocols": {"few-shot": {"published": 1}}}, r"published is 1; it must be true or false"),
        ({"rules": [], "protocols": {"few-shot": {"published": False}}}, "used_instead is needed where published is false"),
        ({"rules": [], "protocols": {"few-shot": {"published": True, "used_instead": "x"}}}, "belongs nowhere else"),
        ({"rules": [], "at_test": {"source": "x"}}, r"at_test has no 'by_target'"),
        ({"rules": [], "at_test": {"source": "x", "by_target": {"dtd": 3}}}, rf"at_test.by_target.dtd {SOME}"),
        ({"rules": [], "at_test": {"source": "x", "by_target": {"dtd": {"widht": 3}}}}, r"at_test: unknown option of toy 'widht'"),
    ],
)
def test_a_damaged_recipe_names_the_place_and_what_is_allowed(recipe, says):
    with pytest.raises(UsageError, match=says):
        outside(recipe)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"rules": [{"source": "x", "method": {"widht": 1}}]}')
    with pytest.raises(UsageError, match=r"mine.json: unknown option of toy 'widht'"):
        outside(path)


def test_negative_shots_are_refused():
    with pytest.raises(UsageError, match="shots is -1; give 1 or more"):
        outside(shots=-1)
