"""The recipe data against the authors' tables, and the order in which values win."""

from __future__ import annotations

from itertools import combinations

import pytest

from mmrl.errors import UsageError
from mmrl.recipes import PROTOCOLS, Resolved, beta_at_test, resolve, rules

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
    assert source(chosen, "precision") == "built-in default"
    assert source(chosen, "first_layer") == "built-in default (published: layer 6 of 12; the same share of another depth)"
    assert source(get("mmrl", first_layer=2), "first_layer") == "command line"
    assert chosen.to_json()[0] == {"section": "method", "key": "rep_tokens", "value": 5, "source": "paper, supplement A"}


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_the_few_shot_batch_says_that_paper_and_code_differ(method):
    run = get(method, "few-shot", "dtd")
    assert run.fit["batch_size"] == 32 and "supplement A, says 4" in source(run, "batch_size")


def test_no_two_rules_of_one_rank_disagree():
    """So precedence never depends on the order of the files."""
    for one, other in combinations(rules(), 2):
        if one.rank == other.rank and set(one.values) & set(other.values):
            apart = [set(a) & set(b) == set() and a and b for a, b in
                     ((one.methods, other.methods), (one.protocols, other.protocols), (one.datasets, other.datasets))]  # fmt: skip
            assert any(apart), f"{one.source} and {other.source} both set {set(one.values) & set(other.values)}"


def test_every_rule_names_a_source_and_known_runs():
    for rule in rules():
        assert len(rule.source) > 10
        assert set(rule.protocols) <= set(PROTOCOLS)
        assert set(rule.methods) <= {"mmrl", "mmrlpp"}
        assert set(rule.datasets) <= {*ELEVEN, "mini:objects"}
        assert {key for section, key in rule.values if section == "fit"} <= set(FIT)
        assert {key for section, key in rule.values if section == "method"} <= set(METHOD)


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


def test_a_method_without_recipes_gets_the_common_training():
    toy = resolve("toy", allowed={"method": ["width"], "fit": list(FIT)}, overrides={"width": 3}, override_source="python call")
    assert toy.method == {"width": 3}
    assert (toy.fit["epochs"], "precision" in toy.fit) == (10, False)
    assert source(toy, "width") == "python call"


def test_beta_at_test_is_offered_but_never_applied():
    compat = beta_at_test("stanford_cars")
    assert compat is not None and compat.value == 0.3 and "target" in compat.source
    variants = ("imagenetv2", "imagenet_r", "imagenet_a", "imagenet_sketch")
    assert [setting.value for name in variants if (setting := beta_at_test(name))] == [0.9, 0.9, 0.8, 0.7]
    assert beta_at_test("mini:objects") is None
    assert get("mmrlpp", "cross-dataset", "imagenet").method["beta"] == 0.9
    assert get("mmrlpp", "cross-dataset", "stanford_cars").method["beta"] == 0.9


def test_at_most_lowers_one_value_and_says_why() -> None:
    resolved = resolve("mmrl", protocol="few-shot", allowed={"method": (), "fit": ("batch_size", "epochs")})
    lowered = resolved.at_most("batch_size", 10, "few images")
    assert (resolved.fit["batch_size"], lowered.fit) == (32, {**resolved.fit, "batch_size": 10})
    assert [s.source for s in lowered.settings if s.key == "batch_size"] == ["few images"]
    assert resolved.at_most("batch_size", 100, "many images") == resolved
