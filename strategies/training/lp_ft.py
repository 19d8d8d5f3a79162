"""LP-FT: fit a linear probe, then fine-tune the network from it, then calibrate."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from strategies.core.context import RunContext
from strategies.core.folds import fold_numbers
from strategies.core.metrics import Scores
from strategies.data.dataset import Dataset, groups_of, labels_of
from strategies.heads.cross_validation import Head, cross_validate, fit_head, temperature
from strategies.models.architectures.anatomy import drop_path_slots
from strategies.models.architectures.timm_zoo import timm_module
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network, scale_scores, set_head
from strategies.models.domain_shift import mean_shift, measure_moments
from strategies.models.features import pooled_features
from strategies.models.flip_symmetry import measure_flip_asymmetry
from strategies.models.network import Network
from strategies.models.stages import stages
from strategies.training.defaults import (
    TrainMeasurements,
    default_batch_size,
    default_steps,
    fill,
    fine_tune_defaults,
    is_open,
    settle,
)
from strategies.training.loop import ROUNDS
from strategies.training.recipe import Recipe, RecipeDraft
from strategies.training.reinit import REINIT_PASSES, reinitialise
from strategies.training.trainer import train

logger = logging.getLogger(__name__)

TEMPERATURE_SPREAD = float(np.log(2))
"""Prior standard deviation of the log temperature: two in three are between a half and two."""
PASSES_PER_STEP = 3.0
"""Cost of one trained image in forward passes: the forward pass, the gradients of the activations,
and those of the weights."""

Adapted = Callable[[Network, Backbone, Recipe], contextlib.AbstractContextManager[None]]
"""Makes a context in which a network has the parameters that are trained (see `fine_tune`)."""


@dataclass(frozen=True)
class Probe:
    """A linear probe of the train images: its head and its out-of-fold accuracy."""

    head: Head
    accuracy: float


def fine_tune(
    dataset: Dataset, backbone: Backbone, draft: RecipeDraft, ctx: RunContext, adapted: Adapted
) -> tuple[Network, Recipe]:
    """Train body and head together, with a linear probe as the initial head; calibrate the result.

    What the draft leaves open is chosen from the train images (`defaults`). If the recipe
    reinitialises part of the network, the probe is refitted to the new features.

    Parameters
    ----------
    adapted
        Adds parameters for the time of the training, and merges them into the weights after it.

    Returns
    -------
    The network, and the recipe that it was trained by.

    Raises
    ------
    OutOfTime
        If the deadline passes before there is a result.

    References
    ----------
    A. Kumar et al., Fine-tuning can distort pretrained features and underperform
    out-of-distribution, ICLR 2022.
    """
    probe = fit_probe(dataset, backbone, ctx)
    head, recipe = probe.head, complete(draft, probe, dataset, backbone, ctx)
    logger.info("training run of %s at %d px: %s", backbone.name, backbone.input_px, recipe)
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
        if recipe.reinitialises:
            renewed = reinitialise(network, dataset, backbone, recipe, ctx)
            head, _ = _fit_head(renewed, dataset, ctx)
        set_head(network, head.weight, head.bias)
        with adapted(network, backbone, recipe), _drop_path(network, backbone, recipe, ctx):
            scores = train(network, dataset, backbone, recipe, ctx)
    calibrate(network, scores, dataset)
    return network, recipe


@contextlib.contextmanager
def _drop_path(
    network: Network, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> Iterator[None]:
    """Drop residual blocks in training (`RecipeDraft.drop_path`) as timm's networks do.

    The network is as before when the context ends.
    """
    net = network.body.net
    slots = drop_path_slots(net) if recipe.drop_path else []
    if recipe.drop_path and not slots:
        ctx.reporter.on_note("This network has no place for drop path, so it is trained without.")
    stage = stages(net, backbone) if slots else {}
    blocks = list(dict.fromkeys(name.rpartition(".")[0] for name in slots))
    rates = dict(zip(blocks, np.linspace(0, recipe.drop_path, len(blocks)), strict=True))
    before = {name: net.get_submodule(name) for name in slots}
    for name in slots:
        if stage[name] > recipe.frozen_stages:
            rate = float(rates[name.rpartition(".")[0]])
            net.set_submodule(name, timm_module("timm.layers").DropPath(rate))
    try:
        yield
    finally:
        for name, module in before.items():
            net.set_submodule(name, module)


def fit_probe(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> Probe:
    """Fit a cross-validated linear probe to the penultimate features of the train images.

    Raises
    ------
    OutOfTime
        If the deadline passes first.
    """
    ctx.check_time()
    penultimate = pooled_features(dataset.train, backbone, ctx, [backbone.n_depths])
    return Probe(*_fit_head(penultimate, dataset, ctx))


def _fit_head(penultimate: Scores, dataset: Dataset, ctx: RunContext) -> tuple[Head, float]:
    """Return a head fitted to features of train, and its out-of-fold accuracy."""
    labels = labels_of(dataset.train)
    found = cross_validate(
        penultimate,
        labels,
        dataset.n_classes,
        folds=fold_numbers(labels, ctx.seed, groups=groups_of(dataset.train)),
        device=ctx.head_device,
    )
    strength = found.strengths[found.best]
    head = fit_head(penultimate, labels, dataset.n_classes, strength, device=ctx.head_device)
    return head, float(found.correct[found.best].mean())


def complete(
    draft: RecipeDraft, probe: Probe, dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> Recipe:
    """Choose from the train images what a draft leaves open; measure only what that needs."""
    batch_size = draft.batch_size or default_batch_size(len(dataset.train))
    steps = draft.steps or default_steps(len(dataset.train), batch_size)
    draft = settle(replace(draft, steps=steps, batch_size=batch_size), backbone.family)
    if not is_open(draft, backbone.family):
        return Recipe.of(draft)
    flip_asymmetry = None
    if draft.hflip is None:
        flip_asymmetry = measure_flip_asymmetry(dataset.train, backbone, ctx)
    found = fine_tune_defaults(
        TrainMeasurements(
            n_train=len(dataset.train),
            n_depths=backbone.n_depths,
            input_px=backbone.input_px,
            n_measured=len(dataset.train),
            probe_accuracy=probe.accuracy,
            domain_shift=mean_shift(measure_moments(dataset.train, ctx).moments),
            flip_asymmetry=flip_asymmetry,
            family=backbone.family,
            n_layers=backbone.n_layers,
        )
    )
    return Recipe.of(fill(draft, found))


def calibrate(network: Network, scores: Scores | None, dataset: Dataset) -> None:
    """Calibrate a trained network by temperature scaling on the validation images.

    With few images the temperature is shrunk to 1 (`TEMPERATURE_SPREAD` is the prior's standard
    deviation).

    Parameters
    ----------
    scores
        Scores of the validation images, shape (n, classes), as `train` returns them. None: there
        are no validation images, and the network is left unchanged.
    """
    if scores is None:
        return
    found, _ = temperature(scores, labels_of(dataset.val), spread=TEMPERATURE_SPREAD)
    scale_scores(network, 1 / found)


def training_passes(
    dataset: Dataset, backbone: Backbone, draft: RecipeDraft, input_px: int | None
) -> float:
    """Return the cost of a training run in forward passes of one image.

    It covers the probe, all training steps and the validations. Frozen stages before the first
    trained one need no backward pass; other frozen weights save their own gradient.

    Parameters
    ----------
    input_px
        Side of the input; None: that of the backbone. The cost is relative to the backbone's.
    """
    n_train = len(dataset.train)
    batch = draft.batch_size or default_batch_size(n_train)
    steps = draft.steps or default_steps(n_train, batch)
    shares = [0.0, *(depth.flops_share for depth in backbone.depths)]
    frozen = shares[draft.frozen_stages or 0]
    last = backbone.n_depths if draft.last_trained_stage is None else draft.last_trained_stage
    weights = shares[last] - frozen if draft.trains_layers else 0.0
    per_image = 1 + (1 - frozen) + weights
    n_before = (1 + REINIT_PASSES * draft.reinitialises) * n_train
    n_validated = (ROUNDS + 1) * len(dataset.val)
    scale = (input_px or backbone.input_px) / backbone.input_px
    return (n_before + steps * batch * per_image + n_validated) * scale**2
