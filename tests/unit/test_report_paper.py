"""The paper's numbers: every value in reach, averages and harmonic means as printed but where they are marked."""

from __future__ import annotations

import statistics

import pytest

from mmrl.reports import harmonic_mean, paper

BASE_TO_NOVEL = list(dict.fromkeys(row["method"] for row in paper.rows("table1_base_to_novel")))
CROSS_DATASET = list(dict.fromkeys(row["method"] for row in paper.rows("table2_cross_dataset")))
FEW_SHOT = list(dict.fromkeys(row["method"] for row in paper.rows("table10_11_few_shot")))


def value(found: paper.Printed | None) -> float:
    assert found is not None
    return found.value


def test_known_values():
    assert paper.base_to_novel("MMRL", "average", "hm") == paper.Printed(81.20)
    assert paper.base_to_novel("CLIP", "eurosat", "novel") == paper.Printed(64.05)
    assert value(paper.cross_dataset("MMRL", "average")) == 67.25
    assert value(paper.domain_generalisation("CLIP", "imagenet_a")) == 47.77
    assert value(paper.few_shot("Linear probe CLIP", "average", 16)) == 78.79
    assert value(paper.ablation("MMRL", "alpha", "0", "average", "novel")) == 72.34
    assert value(paper.ablation("MMRL", "rep-dim", "512", "average", "hm")) == 81.20
    assert value(paper.ablation("MMRL", "regulariser", "l1", "average", "base")) == 85.46
    assert value(paper.ablation("MMRL", "lambda", "7.0", "stanford_cars", "hm")) == 78.06
    assert value(paper.ablation("MMRL", "lambda", "0.5", "imagenet", "base")) == 77.90
    cost = paper.cost("MMRL")
    assert cost and cost["learnable_params"] == "4.992M"
    assert [row["classes"] for row in paper.datasets()[:2]] == ["1000", "100"] and len(paper.datasets()) == 15


@pytest.mark.parametrize(("variant", "hm"), [("w/o DS1", 80.25), ("w/o DS₂", 79.30), ("MMRL-dagger", 80.55), ("full", 81.20), ("", 81.20)])
def test_variants_go_by_any_of_their_names(variant: str, hm: float):
    assert value(paper.ablation("MMRL", "variants", variant, "average", "hm")) == hm


def test_what_the_paper_does_not_print_is_none():
    assert paper.base_to_novel("MMRL++", "average", "hm") is None is paper.base_to_novel("", "average", "hm")
    assert paper.ablation("CoOp", "rep-dim", "512", "average", "hm") is None
    assert paper.base_to_novel("MMRL", "mini:digits", "hm") is None
    assert paper.few_shot("MMRL", "average", 3) is None
    assert paper.ablation("MMRL", "layers", "6", "average", "hm") is None
    assert paper.ablation("MMRL", "alpha", "0.7", "dtd", "hm") is None
    assert paper.ablation("MMRL", "lambda", "0.5", "dtd", "base") is None
    assert paper.domain_generalisation("MMRL", "average") is None
    assert paper.cost("CoOp") is None


@pytest.mark.parametrize("method", BASE_TO_NOVEL)
def test_table_1_adds_up_but_where_it_is_marked(method: str):
    for metric in ("base", "novel"):
        printed = paper.base_to_novel(method, "average", metric)
        mean = statistics.fmean(value(paper.base_to_novel(method, dataset, metric)) for dataset in paper.DATASETS)
        assert printed and (abs(printed.value - mean) < 0.0151) == (printed.odd is None), (method, metric, mean)
    for dataset in (*paper.DATASETS, "average"):
        base, novel, hm = (paper.base_to_novel(method, dataset, metric) for metric in ("base", "novel", "hm"))
        assert hm and (abs(harmonic_mean(value(base), value(novel)) - hm.value) < 0.02) == (hm.odd is None), (method, dataset)


@pytest.mark.parametrize("method", CROSS_DATASET)
def test_table_2_averages_its_targets(method: str):
    mean = statistics.fmean(value(paper.cross_dataset(method, target)) for target in paper.DATASETS if target != "imagenet")
    assert value(paper.cross_dataset(method, "average")) == pytest.approx(mean, abs=0.0151)


@pytest.mark.parametrize("method", FEW_SHOT)
def test_tables_10_and_11_average_but_where_they_are_marked(method: str):
    for shots in paper.SHOTS:
        printed = paper.few_shot(method, "average", shots)
        mean = statistics.fmean(value(paper.few_shot(method, dataset, shots)) for dataset in paper.DATASETS)
        assert printed and (abs(printed.value - mean) < 0.0151) == (printed.odd is None), (shots, mean)


def test_shifted_variants_are_those_of_table_3():
    assert all(paper.domain_generalisation("MMRL", target) for target in ("imagenet", *paper.SHIFTED))
