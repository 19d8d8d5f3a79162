"""LP-FT: fit a linear probe, then fine-tune the network from it, then calibrate."""

from dataclasses import dataclass, replace

import numpy as np

from strategies.core.context import RunContext
from strategies.core.metrics import Scores
from strategies.data.dataset import Dataset, groups_of, labels_of
from strategies.heads.cross_validation import (
    Head,
    cross_validate,
    fit_head,
    fold_numbers,
    temperature,
)
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network, scale_scores, set_head
from strategies.models.domain_shift import domain_shift
from strategies.models.features import Features, extract_features
from strategies.models.flip_symmetry import measure_flip_asymmetry
from strategies.models.network import Network
from strategies.training.defaults import (
    TrainMeasurements,
    default_steps,
    fill,
    fine_tune_defaults,
)
from strategies.training.recipe import Recipe, RecipeDraft
from strategies.training.reinit import REINIT_PASSES, reinitialise
from strategies.training.trainer import ROUNDS, train

TEMPERATURE_SPREAD = float(np.log(2))
"""Prior standard deviation of the log temperature: two in three are between a half and two."""
PASSES_PER_STEP = 3.0
"""Cost of one trained image in forward passes: the forward pass, the gradients of the activations,
and those of the weights."""


@dataclass(frozen=True)
class Probe:
    """A linear probe of the train images: its features, its head, its out-of-fold accuracy."""

    features: Features
    head: Head
    accuracy: float


def fine_tune(
    dataset: Dataset, backbone: Backbone, draft: RecipeDraft, ctx: RunContext
) -> tuple[Network, Recipe]:
    """Train body and head together, with a linear probe as the initial head; calibrate the result.

    What the draft leaves open is chosen from the train images (`defaults`). If the recipe
    reinitialises part of the network, the probe is refitted to the new features.

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
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
        if recipe.reinitialises:
            renewed = reinitialise(network, dataset, backbone, recipe, ctx)
            head, _ = _fit_head(renewed, dataset, ctx)
        set_head(network, head.weight, head.bias)
        scores = train(network, dataset, backbone, recipe, ctx)
    calibrate(network, scores, dataset)
    return network, recipe


def fit_probe(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> Probe:
    """Fit a cross-validated linear probe to the penultimate features of the train images.

    Raises
    ------
    OutOfTime
        If the deadline passes first.
    """
    ctx.check_time()
    features = extract_features(dataset.train, backbone, ctx)
    return Probe(features, *_fit_head(features.at([backbone.n_depths]), dataset, ctx))


def _fit_head(penultimate: Scores, dataset: Dataset, ctx: RunContext) -> tuple[Head, float]:
    """Return a head fitted to features of train, and its out-of-fold accuracy."""
    labels = labels_of(dataset.train)
    found = cross_validate(
        penultimate,
        labels,
        dataset.n_classes,
        folds=fold_numbers(labels, ctx.seed, groups=groups_of(dataset.train)),
        device=ctx.device,
    )
    strength = found.strengths[found.best]
    head = fit_head(penultimate, labels, dataset.n_classes, strength, device=ctx.device)
    return head, float(found.correct[found.best].mean())


def complete(
    draft: RecipeDraft, probe: Probe, dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> Recipe:
    """Choose from the train images what a draft leaves open; measure only what that needs."""
    steps = draft.steps or default_steps(len(dataset.train), draft.batch_size)
    if draft.lr is not None and draft.blend is not None and draft.hflip is not None:
        return Recipe.of(replace(draft, steps=steps))
    features, flip_asymmetry = probe.features, None
    if draft.hflip is None:
        flip_asymmetry = measure_flip_asymmetry(
            dataset.train, backbone, ctx, any_size=features.any_size
        )
    found = fine_tune_defaults(
        TrainMeasurements(
            n_train=len(dataset.train),
            n_depths=backbone.n_depths,
            input_px=backbone.input_px,
            n_measured=len(dataset.train),
            probe_accuracy=probe.accuracy,
            domain_shift=domain_shift(dataset.train, ctx),
            flip_asymmetry=flip_asymmetry,
        )
    )
    return Recipe.of(replace(fill(draft, found), steps=steps))


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
    n_train, batch = len(dataset.train), draft.batch_size
    steps = draft.steps or default_steps(n_train, batch)
    shares = [0.0, *(depth.flops_share for depth in backbone.depths)]
    frozen = shares[draft.frozen_stages or 0]
    last = backbone.n_depths if draft.last_trained_stage is None else draft.last_trained_stage
    weights = shares[last] - frozen if draft.trained == "all" else 0.0
    per_image = 1 + (1 - frozen) + weights
    n_before = (1 + REINIT_PASSES * draft.reinitialises) * n_train
    n_validated = (ROUNDS + 1) * len(dataset.val)
    scale = (input_px or backbone.input_px) / backbone.input_px
    return (n_before + steps * batch * per_image + n_validated) * scale**2
