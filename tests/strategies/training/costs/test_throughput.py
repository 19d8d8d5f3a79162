"""Training throughput: the measured ratio is robust to a single slow disk write."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.data.dataset import load_dataset
from strategies.models.backbone import Backbone
from strategies.models.features import INFERENCE_BATCH
from strategies.training.costs.throughput import measure_training_cost

SLEPT_S = 3.0


@pytest.mark.parametrize(("n_per_class", "batches"), [(20, 2), (80, 4)])
def test_a_slow_disk_write_in_the_feature_pass_does_not_make_training_look_cheap(
    n_per_class: int,
    batches: int,
    make_folder: Callable[..., Path],
    backbone: Backbone,
    ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = load_dataset(make_folder("many", n_per_class))
    assert min(4, -(-len(dataset.train) // INFERENCE_BATCH)) == batches
    slept = []
    put = ArrayCache.put_features

    def sleep_once(self: ArrayCache, space: str, rows: Mapping[str, np.ndarray]) -> None:
        if not slept and len(rows) >= INFERENCE_BATCH:
            slept.append(space)
            time.sleep(SLEPT_S)
        put(self, space, rows)

    monkeypatch.setattr(ArrayCache, "put_features", sleep_once)
    found = measure_training_cost(dataset, backbone, ctx).passes_per_image
    assert slept
    assert found >= 1.0
    if batches > 2:  # a single timed batch has no median to protect it
        assert found > 1.0
