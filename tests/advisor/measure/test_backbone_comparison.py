"""Comparison of backbones: one ranks above another only if it is significantly better."""

from dataclasses import replace

import numpy as np

from advisor.measure.backbone_comparison import (
    _Probed,
    _rank,
    compare_backbones,
    comparison_rationale,
)
from advisor.types.profile import BackboneScore
from strategies.core.context import RunContext
from strategies.core.metrics import proportion
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.catalogue import DEFAULT_BACKBONE


def probed(backbone: Backbone, name: str, hits: np.ndarray, ms: float) -> _Probed:
    accuracy = proportion(float(hits.mean()), len(hits))
    return _Probed(backbone, hits, BackboneScore(name, 0, accuracy, None, ms, 0.4, 224, 4.0, 1))


def test_equal_backbones_share_a_rank_and_the_fastest_is_first(backbone: Backbone) -> None:
    row = np.arange(300)
    a, b, poor = row % 10 != 0, row % 10 != 1, row % 2 == 0
    ranked = _rank(
        [
            probed(backbone, "slow", a, 20.0),
            probed(backbone, "poor", poor, 1.0),
            probed(backbone, "fast", b, 10.0),
        ]
    )
    assert [(s.name, s.rank) for s in ranked] == [("fast", 1), ("slow", 1), ("poor", 3)]
    assert ranked[2].behind_best is not None
    assert ranked[2].behind_best.low > 0
    assert "fastest of those" in comparison_rationale(ranked)
    assert "better than the others" in comparison_rationale([ranked[0], ranked[2]])


def test_a_significantly_better_backbone_ranks_first_whatever_its_cost(backbone: Backbone) -> None:
    good = np.arange(400) % 20 != 0
    worse = good & (np.arange(400) % 4 != 0)
    ranked = _rank([probed(backbone, "cheap", worse, 1.0), probed(backbone, "costly", good, 99.0)])
    assert [s.rank for s in ranked] == [1, 2]
    assert ranked[0].name == "costly"


def test_the_same_network_at_two_sizes_is_compared_on_the_same_images(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    both = [backbone, replace(backbone, input_px=32)]
    ranked = compare_backbones(both, small_dataset.fit_split, small_dataset.n_classes, ctx)
    assert {s.input_px for s in ranked} == {32, 64}
    assert ranked[0].rank == 1
    assert all(s.ms_per_image > 0 for s in ranked)
    assert [s.size_rank for s in ranked] == [1, 1]


def test_the_larger_network_is_first_by_size_whatever_its_probe(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    larger = replace(backbone, name=DEFAULT_BACKBONE, input_px=32, params_m=backbone.params_m + 1)
    ranked = compare_backbones(
        [backbone, larger], small_dataset.fit_split, small_dataset.n_classes, ctx
    )
    assert {s.params_m: s.size_rank for s in ranked} == {
        larger.params_m: 1,
        backbone.params_m: 2,
    }
