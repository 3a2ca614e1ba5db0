"""Every packaged recipe: complete, with nothing of another method's, and equal to what the authors of the baselines published.

`tests/golden/recipes_baselines.json` has their values, read from the repositories at the commits that the recipes name: by method and
protocol the values, then those that differ by number of shots, then those that differ by data set.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from mmrl import methods
from mmrl.data import dataset_info, dataset_names
from mmrl.engine import FitConfig
from mmrl.recipes import PROTOCOLS, Resolved, Rule, at_test, packaged, publication, recipe_of, resolve

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "recipes_baselines.json").read_text(encoding="utf-8"))
SHOTS = (1, 2, 4, 8, 16)
FIT = """epochs iterations batch_size drop_last lr optimizer momentum eps weight_decay schedule schedule_step final_lr warmup_epochs
    warmup_lr crop_scale precision""".split()
REPRESENTATION = "rep_tokens rep_dim first_layer alpha lam"
CACHE = "alpha beta augment_epoch search_scale search_step selection templates"
OPTIONS = {
    "mmrl": REPRESENTATION,
    "mmrlpp": f"{REPRESENTATION} beta layer_rank projection_rank",
    "coop": "n_ctx ctx_init csc class_token_position",
    "cocoop": "n_ctx ctx_init reduction",
    "proda": "n_prompts n_ctx prompts_per_step class_token_position orthogonality_weight covariance",
    "plot": "n_prompts n_ctx ctx_init csc class_token_position sinkhorn_eps sinkhorn_max_iter sinkhorn_threshold add_pooled_logits",
    "mma": "adapter_start adapter_end adapter_dim adapter_scale template",
    "clip-lora": "rank alpha dropout matrices encoder position template",
    "maple": "n_ctx ctx_init depth",
    "kgcoop": "n_ctx ctx_init csc class_token_position teacher_template reg_weight",
    "plotpp": """n_prompts n_vision_prompts n_ctx_vision ctx_init n_ctx trained sinkhorn_eps sinkhorn_max_iter sinkhorn_threshold
        add_pooled_logits""",
    "rpo": "n_prompts template keep_underscores",
    "tcp": "n_ctx ctx_init template teacher_template insert_layer insert_weight reduction reg_weight",
    "metaprompt": "n_ctx_text n_ctx_vision depth meta_step frozen_templates keep_underscores vision_between",
    "prograd": "n_ctx init teacher_template prograd_lambda temperature",
    "promptsrc": """n_ctx_text n_ctx_vision ctx_init depth_text depth_vision text_loss_weight image_loss_weight logit_loss_weight gpa_mean
        gpa_std teacher_templates""",
    "provp": "n_ctx_vision depth progressive_alpha ref_loss_weight template",
    "tip-adapter": CACHE,
    "tip-adapter-f": CACHE,
    "clip-adapter": "reduction ratio last_relu",
    "ape": "channels criterion_weights alpha beta gamma augment_epoch search_scale search_step selection templates",
    "ape-t": f"{CACHE} channels criterion criterion_weights",
    "linear-probe": "c_grid c_search_steps max_iter selection",
    "clap": "penalty augment_epoch probe_epochs probe_batch probe_lr probe_momentum templates",
    "lpp": "probe_steps probe_momentum alpha_every alpha_scale selection templates",
    "gda": "alpha alpha_grid augment_epoch covariance pinv_cut neighbours text_copies selection keep_samples templates",
}
BUILT_IN = {
    "mmrl": {"first_layer"},
    "mmrlpp": {"first_layer"},
    "mma": {"adapter_end"},
    "maple": {"depth"},
    "promptsrc": {"teacher_templates", "depth_text", "depth_vision"},
    "prograd": {"teacher_template"},
    "metaprompt": {"depth", "frozen_templates"},
    "provp": {"depth", "template"},
    "kgcoop": {"teacher_template"},
    "tcp": {"insert_layer", "template", "teacher_template"},
}
UNREAD = {"proda"}  # whose published values could not be had
UNTRAINED = {  # by steps; what their recipes set of `fit`
    "tip-adapter": {"batch_size", "crop_scale"},
    "ape": {"batch_size", "crop_scale"},
    "linear-probe": set[str](),
    "clap": {"crop_scale"},
    "lpp": {"crop_scale"},
    "gda": {"crop_scale"},
}
TRAINED = {
    "batch_size",
    "drop_last",
    "lr",
    "optimizer",
    "weight_decay",
    "schedule",
    "schedule_step",
    "final_lr",
    "warmup_epochs",
    "crop_scale",
}
CHOSEN_ON_TEST = {("clip-adapter", "dtd"): ("method", "ratio")}  # by the authors; ours is another, and says what theirs is
ELEVEN = """imagenet caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101""".split()


def get(method: str, protocol: str, dataset: str | None = None, shots: int | None = 16) -> Resolved:
    allowed = {"method": dict.fromkeys(OPTIONS[method].split()), "fit": dict.fromkeys(FIT)}
    return resolve(method, allowed=allowed, protocol=protocol, dataset=dataset, shots=shots)


def sources(run: Resolved, section: str) -> dict[str, str]:
    return {setting.key: setting.source for setting in run.settings if setting.section == section}


def published(method: str, protocol: str, dataset: str | None, shots: int) -> dict[tuple[str, str], Any]:
    """The authors' values for one run."""
    entry = GOLDEN[method][protocol]
    found: dict[tuple[str, str], Any] = {}
    for layer in (entry, entry.get("by_dataset", {}).get(dataset, {})):
        for values in (layer, layer.get("by_shots", {}).get(str(shots), {})):
            found |= {(section, key): value for section in ("method", "fit") for key, value in values.get(section, {}).items()}
    return found


RUNS = [(method, protocol) for method in OPTIONS for protocol in PROTOCOLS]


def test_every_method_has_its_file():
    assert set(packaged()) == set(OPTIONS)
    assert set(GOLDEN) == set(packaged()) - {"mmrl", "mmrlpp"} - UNREAD


@pytest.mark.parametrize("method", GOLDEN)
def test_every_published_value_is_what_a_run_gets(method: str):
    compared = 0
    for protocol in GOLDEN[method]:
        for dataset in (None, *ELEVEN):
            for shots in SHOTS:
                run, wanted = get(method, protocol, dataset, shots), published(method, protocol, dataset, shots)
                got = {
                    **{("method", key): value for key, value in run.method.items()},
                    **{("fit", key): value for key, value in run.fit.items()},
                }
                if (own := wanted.pop(("method", "templates"), None)) and dataset != "imagenet":  # None is the data set's own prompt
                    assert dataset and [dataset_info(dataset).template] == own and got["method", "templates"] is None
                elif own:
                    assert got["method", "templates"] == own
                for place in [place for place in wanted if got[place] is None]:  # a layer, which a shallower backbone may not have
                    assert f"published: {wanted.pop(place)}," in sources(run, "method")[place[1]]
                if (leak := CHOSEN_ON_TEST.get((method, dataset))) and leak in wanted:
                    assert got[leak] != wanted[leak] and f"({wanted.pop(leak)} on DTD)" in str(recipe_of(method))
                assert {place: got[place] for place in wanted} == wanted, f"{method}, {protocol}, {dataset}, {shots} shots"
                compared += len(wanted)
    assert compared > 100


def test_the_golden_table_was_read_where_values_differ():
    assert published("coop", "few-shot", "dtd", 1)["fit", "epochs"] == 50
    assert published("coop", "few-shot", "dtd", 16)["fit", "epochs"] == 200
    assert published("coop", "few-shot", "imagenet", 16)["fit", "epochs"] == 50
    assert published("prograd", "few-shot", "eurosat", 8)["method", "prograd_lambda"] == 0.8
    assert published("clip-lora", "few-shot", None, 4)["fit", "iterations"] == 2000
    assert published("mma", "cross-dataset", None, 16)["method", "adapter_start"] == 9


@pytest.mark.parametrize(("method", "protocol"), RUNS)
def test_a_recipe_sets_all_that_its_training_depends_on(method: str, protocol: str):
    """So no method is trained with a built-in default, which is MMRL's."""
    for dataset in (None, *ELEVEN, "mini:digits", "mini:objects", "a/folder"):
        for shots in (*SHOTS, 0, None):
            run = get(method, protocol, dataset, shots)
            default = {key for key, source in sources(run, "method").items() if source.startswith("built-in default")}
            assert default <= BUILT_IN.get(method, set()), f"{dataset}, {shots} shots"
            fit = {key for key, source in sources(run, "fit").items() if not source.startswith("built-in default")}
            if method in UNTRAINED:
                assert fit == UNTRAINED[method]
                continue
            needed = (
                TRAINED
                | {"sgd": {"momentum"}, "adam": {"eps"}, "adamw": {"eps"}}[run.fit["optimizer"]]
                | {"iterations" if method == "clip-lora" else "epochs"}
            )
            assert fit == needed | ({"warmup_lr"} if run.fit["warmup_epochs"] or method.startswith("mmrl") else set())


@pytest.mark.parametrize(("method", "protocol"), RUNS)
def test_no_value_of_another_method_s(method: str, protocol: str):
    """Every source is a rule of the method's own file, or the built-in default."""
    recipe = recipe_of(method)
    assert recipe is not None
    own = {rule.source for rule in recipe.rules}
    for dataset in (None, *ELEVEN, "mini:objects"):
        for setting in get(method, protocol, dataset).settings:
            assert setting.source in own or setting.source.startswith("built-in default"), setting


def test_values_that_are_not_passed_on_from_mmrl():
    for method in GOLDEN:
        for protocol in PROTOCOLS:
            for dataset in (None, "imagenet", "mini:objects"):
                text = json.dumps(get(method, protocol, dataset).to_json())
                assert "published MMRL" not in text and "published configuration" not in text and "supplement A" not in text
    assert get("coop", "cross-dataset", "imagenet").fit["batch_size"] == 32 and get("coop", "cross-dataset", "imagenet").fit["epochs"] == 50
    assert get("cocoop", "base-to-novel", "imagenet").fit["batch_size"] == 1
    assert get("maple", "cross-dataset", "imagenet").fit["warmup_epochs"] == 1
    crops = {method: tuple(get(method, "few-shot").fit["crop_scale"]) for method in packaged() if method != "linear-probe"}
    narrow = {method for method, crop in crops.items() if crop == (0.5, 1.0)}
    assert narrow == {"mmrl", "mmrlpp", "tip-adapter", "tip-adapter-f", "ape", "ape-t", "lpp", "gda"}
    assert set(crops.values()) == {(0.5, 1.0), (0.08, 1.0)}


def overlap(one: Rule, other: Rule) -> bool:
    """Whether there is a run that both hold for. Of one rank, both name data sets or neither does."""
    start, end = (
        max(r.shots[0] if r.shots else 0 for r in (one, other)),
        min(r.shots[1] or 10**9 if r.shots else 10**9 for r in (one, other)),
    )
    protocols = not one.protocols or not other.protocols or bool(set(one.protocols) & set(other.protocols))
    return protocols and one.dataset == other.dataset and start < end


@pytest.mark.parametrize("method", packaged())
def test_no_two_rules_of_one_rank_disagree(method: str):
    """So precedence never depends on the order in a file."""
    recipe = recipe_of(method)
    assert recipe is not None
    for one, other in combinations(recipe.rules, 2):
        both = set(one.values) & set(other.values)
        assert one.rank != other.rank or not both or not overlap(one, other), f"{one.source} and {other.source} both set {both}"


@pytest.mark.parametrize("method", packaged())
def test_every_rule_names_a_source_and_known_runs(method: str):
    recipe = recipe_of(method)
    assert recipe is not None
    for rule in recipe.rules:
        assert 10 < len(rule.source) <= 130
        assert rule.dataset in {"", "mini:*", *dataset_names()}
        assert rule.dataset.startswith("mini:") == rule.source.startswith("ours: ")
        assert {key for section, key in rule.values if section == "fit"} <= set(FIT)
        assert {key for section, key in rule.values if section == "method"} <= set(OPTIONS[method].split())
        assert set(rule.notes) <= {*FIT, *OPTIONS[method].split()}
    assert set(recipe.at_test) <= set(dataset_names())


@pytest.mark.parametrize(("method", "protocol"), RUNS)
def test_what_is_not_published_is_said(method: str, protocol: str):
    found = publication(method, protocol)
    assert found is not None and found.facts and any("RN50" in fact or "ViT-B/16" in fact for fact in found.facts)
    assert found.published == (not found.used_instead)
    if method in GOLDEN:
        entry = GOLDEN[method].get(protocol, {"published": False, "verified": False})
        assert found.published == entry["published"]
        if not entry["verified"] and ("fit" in entry or "method" in entry):
            assert any("not verified" in source for source in sources(get(method, protocol, "imagenet"), "method").values())
    else:
        assert found.published == (method not in UNREAD)
        if method in UNREAD:
            chosen = [setting.source for setting in get(method, protocol, "imagenet").settings]
            assert all("not verified" in source or "built-in default" in source for source in chosen)


@pytest.mark.parametrize("method", packaged())
def test_what_the_authors_computed_in_is_noted(method: str):
    source = sources(get(method, "few-shot"), "fit")["precision"]
    assert source.startswith("built-in default (published: ") and "fp16" in source


def test_values_that_are_not_verified_say_so():
    for protocol in ("cross-dataset", "domain-generalisation"):
        run = get("mma", protocol, "imagenet")
        assert (run.method["adapter_start"], run.fit["epochs"], run.fit["batch_size"]) == (9, 1, 128)
        assert "not verified" in sources(run, "method")["adapter_start"]
        assert "not verified" in sources(run, "fit")["epochs"] and "not verified" in sources(run, "fit")["batch_size"]
    run = get("maple", "few-shot")
    assert run.fit["epochs"] == 50 and "not verified" in sources(run, "fit")["epochs"]


def test_values_of_the_few_shot_runs_of_kgcoop():
    run = get("kgcoop", "few-shot", "dtd", 4)
    assert (run.fit["batch_size"], run.method["teacher_template"]) == (32, "a photo of a {}, a type of texture.")
    assert "not verified" in sources(run, "fit")["batch_size"] and get("kgcoop", "base-to-novel", "dtd").fit["batch_size"] == 128


def test_tcp_s_epochs_and_prompts():
    assert [get("tcp", protocol, "imagenet").fit["epochs"] for protocol in PROTOCOLS] == [25] * len(PROTOCOLS)
    assert get("tcp", "base-to-novel", "ucf101").method["template"] == "person doing {}."
    run = get("tcp", "base-to-novel", "mini:digits")
    assert (run.fit["epochs"], run.fit["optimizer"], run.fit["eps"]) == (50, "adam", 1e-3)


def test_protocols_without_published_values():
    assert get("cocoop", "few-shot").to_json() == get("cocoop", "base-to-novel").to_json()
    for protocol in PROTOCOLS:
        for method in ("clip-lora", "plot", "plotpp", "tip-adapter", "tip-adapter-f", "linear-probe", "lpp", "clap", "ape", "ape-t"):
            assert get(method, protocol, "dtd").to_json() == get(method, "few-shot", "dtd").to_json()
    assert get("prograd", "cross-dataset", "imagenet").to_json() == get("prograd", "domain-generalisation", "imagenet").to_json()


def test_numbers_of_shots_between_and_beyond():
    assert [get("coop", "few-shot", "dtd", n).fit["epochs"] for n in (1, 2, 3, 4, 6, 8, 12, 16, 64, 0, None)] == [
        50,
        *[100] * 4,
        *[200] * 6,
    ]
    assert [get("coop", "few-shot", "imagenet", n).fit["epochs"] for n in (1, 3, 16, 0)] == [50] * 4
    assert [get("coop", "base-to-novel", "dtd", n).fit["epochs"] for n in (1, 16)] == [200] * 2
    assert [get("clip-lora", "few-shot", "dtd", n).fit["iterations"] for n in (1, 3, 16, 32, 0, None)] == [
        500,
        1500,
        8000,
        16_000,
        8000,
        8000,
    ]
    assert [get("prograd", "few-shot", "dtd", n).method["prograd_lambda"] for n in (1, 4, 7, 8, 16, 0)] == [1.0, 1.0, 1.0, 0.8, 0.8, 0.8]
    assert get("prograd", "base-to-novel", "dtd", 16).method["prograd_lambda"] == 1.0


def test_the_mini_benchmark_s_own_values():
    long = ("coop", "prograd", "plot", "plotpp", "proda", "provp", "kgcoop", "clip-adapter")
    for method, key, value in (("clip-lora", "iterations", 200), *((name, "epochs", 50) for name in long)):
        for n in (1, 16):
            run = get(method, "few-shot", "mini:digits", n)
            assert run.fit[key] == value and sources(run, "fit")[key].startswith("ours: ")
    ours = {(method, rule.dataset) for method in packaged() for rule in recipe_of(method).rules if rule.source.startswith("ours")}  # type: ignore[union-attr]
    of_all = {(name, "mini:*") for name in ("clip-lora", "mma", *long)}
    assert ours == {("mmrl", "mini:objects"), ("mmrlpp", "mini:objects"), ("mma", "mini:objects")} | of_all
    assert get("mma", "cross-dataset", "mini:objects").method["adapter_start"] == 6  # of 8 layers


@pytest.mark.parametrize("method", methods.registered())
def test_every_key_of_a_recipe_is_an_option(method: str):
    cls = methods.get(method)
    recipe = recipe_of(method, cls.recipe)
    if recipe is None:
        return
    known = {("method", key) for key in cls.Options.model_fields} | {("fit", key) for key in FitConfig.model_fields}
    assert not {place for rule in recipe.rules for place in rule.values} - known
    assert not {key for rule in recipe.rules for key in rule.notes} - {key for _, key in known}
    assert not {key for options in recipe.at_test.values() for key in options} - set(cls.Options.model_fields)


@pytest.mark.parametrize("method", methods.registered())
def test_every_value_of_a_recipe_is_allowed(method: str):
    cls = methods.get(method)
    allowed = {section: {name: field.default for name, field in options.model_fields.items()} for section, options in
               (("method", cls.Options), ("fit", FitConfig))}  # fmt: skip
    for protocol in PROTOCOLS:
        for dataset in (None, *ELEVEN, "mini:digits", "mini:objects"):
            for shots in SHOTS:
                run = resolve(method, allowed=allowed, protocol=protocol, dataset=dataset, shots=shots, recipe=cls.recipe)
                methods.make_options(cls, run.method)
                FitConfig(**run.fit)
    for target in dataset_names():
        methods.make_options(cls, {setting.key: setting.value for setting in at_test(method, target, cls.recipe)})
