"""Backbones side by side: ranked only where chance cannot explain the difference."""

from dataclasses import replace

import numpy as np

from advisor.measure.backbone_comparison import _rank, _Tried, compare_backbones, why_first
from advisor.types.profile import BackboneScore
from strategies.core.context import RunContext
from strategies.core.metrics import proportion
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone


def tried(backbone: Backbone, name: str, hits: np.ndarray, ms: float) -> _Tried:
    accuracy = proportion(float(hits.mean()), len(hits))
    return _Tried(backbone, hits, BackboneScore(name, 0, accuracy, None, ms, 0.4, 224))


def test_equals_share_a_rank_and_the_fastest_stands_first(backbone: Backbone) -> None:
    row = np.arange(300)
    a, b, poor = row % 10 != 0, row % 10 != 1, row % 2 == 0
    ranked = _rank(
        [
            tried(backbone, "slow", a, 20.0),
            tried(backbone, "poor", poor, 1.0),
            tried(backbone, "fast", b, 10.0),
        ]
    )
    assert [(s.name, s.rank) for s in ranked] == [("fast", 1), ("slow", 1), ("poor", 3)]
    assert ranked[2].behind_best is not None
    assert ranked[2].behind_best.low > 0
    assert "fastest of those" in why_first(ranked)
    assert "better than the others" in why_first([ranked[0], ranked[2]])


def test_a_clear_winner_stands_alone_whatever_it_costs(backbone: Backbone) -> None:
    good = np.arange(400) % 20 != 0
    worse = good & (np.arange(400) % 4 != 0)
    ranked = _rank([tried(backbone, "cheap", worse, 1.0), tried(backbone, "dear", good, 99.0)])
    assert [s.rank for s in ranked] == [1, 2]
    assert ranked[0].name == "dear"


def test_the_same_network_at_two_sizes_is_compared_on_the_same_images(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    both = [backbone, replace(backbone, input_px=32)]
    ranked = compare_backbones(both, small_dataset.fit_split, small_dataset.n_classes, ctx)
    assert {s.input_px for s in ranked} == {32, 64}
    assert ranked[0].rank == 1
    assert all(s.ms_per_image > 0 for s in ranked)
