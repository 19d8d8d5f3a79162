"""Training throughput: measure the cost of a trained image, relative to a feature pass."""

import time
from dataclasses import dataclass, replace

import numpy as np

from strategies.core.cache import space_name
from strategies.core.context import RunContext
from strategies.core.devices import device_name
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.features import INFERENCE_BATCH, time_features
from strategies.training.loop import ROUNDS
from strategies.training.recipe import BATCH_SIZE, Recipe
from strategies.training.trainer import train

STEPS = 3
"""Optimiser steps per measurement. The first one is warm-up. Up to `ROUNDS` steps, the training
loop calls ``on_epoch`` after every step."""
N_TIMED = 4 * INFERENCE_BATCH
"""Images in the timed feature pass. The first batch is warm-up. The median of the others is used,
so that a single slow disk write does not matter."""
_KEY = "feature passes per trained image, seconds to build"


@dataclass(frozen=True)
class TrainingCost:
    """Cost of one trained image, in feature passes, and seconds to build the network."""

    passes_per_image: float
    build_s: float


def measure_training_cost(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> TrainingCost:
    """Train for a few steps on real images; return the cost relative to the feature pass.

    The ratio depends on network, input size, precision and machine, not on the images, so it is
    cached. It is at least 1, because training includes a forward pass.
    """
    name = [
        backbone.name,
        backbone.digest,
        backbone.input_px,
        ctx.precision,
        device_name(ctx.device),
    ]
    space = space_name([_KEY, *name])
    cached = ctx.cache.get(space, [_KEY])
    if _KEY not in cached:
        cached = {_KEY: np.array(_measure(dataset, backbone, ctx), dtype=np.float32)}
        ctx.cache.put(space, cached)
    passes, build_s = cached[_KEY].tolist()
    return TrainingCost(passes, build_s)


def _measure(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> tuple[float, float]:
    assert STEPS <= ROUNDS
    few = replace(dataset, train=dataset.train[:BATCH_SIZE], val=(), test=None)
    stamps: list[float] = []
    start = time.perf_counter()
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
        build_s = time.perf_counter() - start
        recipe = Recipe(steps=STEPS, lr=1e-4)

        def record_time(epoch: int, accuracy: float | None) -> None:
            stamps.append(time.perf_counter())

        timed = replace(ctx, reporter=replace(ctx.reporter, on_epoch=record_time), deadline_s=None)
        train(network, few, backbone, recipe, timed)
    trained_ms = 1000 * float(np.min(np.diff(stamps))) / BATCH_SIZE
    pass_ms = time_features(dataset.train[:N_TIMED], backbone, ctx)
    return max(1.0, trained_ms / pass_ms), build_s
