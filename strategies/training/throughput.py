"""What training costs on this machine, measured by training for a moment."""

import time
from dataclasses import dataclass, replace

import numpy as np

from strategies.core.cache import space_name
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.features import BATCH, extract_features
from strategies.training.recipe import Recipe
from strategies.training.trainer import ROUNDS, train

STEPS = 3
"""The first only warms up; with at most `ROUNDS` steps the loop reports after each."""
N_PASSED = 4 * BATCH
"""Images whose feature pass training is compared with: the first batch only warms up, and of the
others the median counts, so that one slow write to the disk does not."""
_KEY = "feature passes per trained image, seconds to build"


@dataclass(frozen=True)
class TrainingCost:
    """Cost of training a network on one image, in feature passes; seconds to make it."""

    passes_per_image: float
    build_s: float


def measure_training_cost(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> TrainingCost:
    """Train on a few real images, and compare with the feature pass at the same size.

    The ratio belongs to network, input size and machine, not to the images: it is kept in the
    cache. It is at least 1, as training passes every image forward too.
    """
    name = [backbone.name, backbone.digest, backbone.input_px, ctx.precision, ctx.device.type]
    space = space_name([_KEY, *name])
    kept = ctx.cache.get(space, [_KEY])
    if _KEY not in kept:
        kept = {_KEY: np.array(_measure(dataset, backbone, ctx), dtype=np.float32)}
        ctx.cache.put(space, kept)
    passes, build_s = kept[_KEY].tolist()
    return TrainingCost(passes, build_s)


def _measure(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> tuple[float, float]:
    assert STEPS <= ROUNDS
    few = replace(dataset, train=dataset.train[:BATCH], val=(), test=None)
    stamps: list[float] = []
    start = time.perf_counter()
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
        build_s = time.perf_counter() - start
        recipe = Recipe(steps=STEPS, lr=1e-4, batch_size=BATCH)

        def note(epoch: int, accuracy: float | None) -> None:
            stamps.append(time.perf_counter())

        train(network, few, backbone, recipe, replace(ctx, on_epoch=note, deadline_s=None))
    trained_ms = 1000 * float(np.min(np.diff(stamps))) / BATCH
    passed = extract_features(dataset.train[:N_PASSED], backbone, ctx)
    return max(1.0, trained_ms / passed.ms_per_image), build_s
