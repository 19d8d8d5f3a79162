"""measure(): a dataset and a backbone to the numbers that advice rests on."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from advisor.measure.knn import knn_accuracy
from advisor.measure.learning_curve import Point, learning_curve
from advisor.measure.paired import loss_gain, paired_gain
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.measure.random_init_control import measure_control, pixel_probe
from advisor.similarity.domain_similarity import measure_similarity
from advisor.similarity.reference import Reference, shipped_reference
from advisor.similarity.transferability import rate_features
from advisor.types.profile import LearningCurve, ProbeResult, Profile
from advisor.types.similarity import DomainSimilarity
from strategies.core.context import RunContext
from strategies.core.metrics import Labels, Scores
from strategies.data.dataset import Dataset, LabelledImage, groups_of, labels_of
from strategies.data.sampling import content_order
from strategies.heads.cross_validation import (
    CrossValidated,
    Loss,
    corrected_accuracy,
    cross_validate,
    fold_numbers,
    significantly_better,
    temperature,
)
from strategies.models.backbone import Backbone, half_size
from strategies.models.features import Features, extract_features
from strategies.registry import STRATEGIES
from strategies.training.flip_symmetry import measure_flip_asymmetry
from strategies.training.recipe import fine_tune_defaults
from strategies.training.throughput import TrainingCost, measure_training_cost

MAX_MEASURED, MIN_PER_CLASS = 2000, 5
"""Probes and similarity are measured on at most this many images, but these many per class."""
EVIDENCE_SHARE, N_TIMED = 0.2, 64
"""Under a time limit the pass over the images may take this share of what is left of it, as
so many of them foretell."""
TIMED_PX = 96
"""Training is timed at half the side: the ratio to a forward pass is the same, down to here."""


def measure(
    dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    reference: Reference | None = None,
) -> Profile:
    """Measure a dataset without training a network; see `measure_with_evidence`."""
    return measure_with_evidence(dataset, backbone, ctx, reference)[0]


def measure_with_evidence(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, reference: Reference | None = None
) -> tuple[Profile, ProbeEvidence]:
    """Measure a dataset without training a network, and keep what the data findings rest on.

    Parameters
    ----------
    reference
        The user's own images of the pretraining domain; default: what this program ships.

    Raises
    ------
    OutOfTime
        If the deadline passes during the pass over the images.
    """
    images = sample(
        dataset.fit_split, dataset.n_classes, ctx.seed, _affordable(dataset, backbone, ctx)
    )
    labels = labels_of(images)
    features = extract_features(images, backbone, ctx)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(images))
    tried = _probe_depths(features, labels, dataset.n_classes, folds, ctx)
    control = measure_control(images, features, dataset.n_classes, backbone, ctx)
    training = _training_cost(dataset, features, backbone, ctx)
    last = features.pooled[-1]
    measured = ProbeEvidence(backbone.input_px, images, tried.scores, last, seed=ctx.seed)
    counts = np.bincount(labels_of(dataset.fit_split), minlength=dataset.n_classes)
    defaults = {name: strategy() for name, strategy in STRATEGIES.items()}
    reasons = {name: s.inapplicable(dataset, backbone) for name, s in defaults.items()}
    profile = Profile(
        n=len(dataset.fit_split),
        n_train=len(dataset.train),
        n_val=len(dataset.val),
        n_by_class=dict(zip(dataset.classes, counts.tolist(), strict=True)),
        imbalance=float(counts.max() / max(counts.min(), 1)),
        median_side_px=float(np.median([min(p.width_px, p.height_px) for p in images])),
        backbone=backbone.name,
        input_px=backbone.input_px,
        feature_width=backbone.depths[-1].channels,
        depth_names=tuple(d.name for d in backbone.depths),
        flops_shares=tuple(d.flops_share for d in backbone.depths),
        similarity=_similarity(features, labels, dataset, backbone, reference, ctx.seed),
        probes=tried.probes,
        layer_svm=tried.layer_svm,
        majority_share=float(counts.max() / counts.sum()),
        n_measured=len(images),
        ms_per_image=features.ms_per_image,
        image_passes={n: s.image_passes(dataset, backbone) for n, s in defaults.items()},
        inapplicable={name: reason for name, reason in reasons.items() if reason},
        random_probes=control.probes,
        curve=_curve(last, labels, images, folds, tried.probes[0], dataset.n_classes, ctx),
        knn=knn_accuracy(last, labels, dataset.n_classes, folds),
        transferability=rate_features(last, labels, ctx.seed),
        transfer_gain=control.gain,
        pixel_probe=pixel_probe(images, dataset.n_classes, ctx.seed),
        head_s=tried.seconds,
        build_s=training.build_s,
        passes_per_trained_image=training.passes_per_image,
        fine_tune_defaults=_defaults(images, features, tried.probes[0], backbone, ctx),
    )
    return profile, measured


def _training_cost(
    dataset: Dataset, features: Features, backbone: Backbone, ctx: RunContext
) -> TrainingCost:
    """Measure the cost of training, at half the input size where the network takes any size."""
    small = half_size(backbone, TIMED_PX) if features.any_size else backbone
    return measure_training_cost(dataset, small, ctx)


def _defaults(
    images: Sequence[LabelledImage],
    features: Features,
    probe: ProbeResult,
    backbone: Backbone,
    ctx: RunContext,
) -> Mapping[str, float | bool]:
    """Return what a fine-tune would choose by itself on these images."""
    flip_asymmetry = measure_flip_asymmetry(images, backbone, ctx, any_size=features.any_size)
    return asdict(fine_tune_defaults(features, probe.accuracy.mid, flip_asymmetry))


def sample(
    split: Sequence[LabelledImage], n_classes: int, seed: int, most: int = MAX_MEASURED
) -> tuple[LabelledImage, ...]:
    """Draw about `most` images, each class in proportion but at least a few."""
    if len(split) <= most:
        return tuple(split)
    labels = labels_of(tuple(split))
    order = np.array(content_order((p.digest for p in split), seed))
    kept: list[int] = []
    for label in range(n_classes):
        rows = order[labels[order] == label]
        quota = max(MIN_PER_CLASS, round(most * len(rows) / len(split)))
        kept += rows[:quota].tolist()
    return tuple(split[i] for i in sorted(kept))


def _affordable(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> int:
    """Return how many images can be measured in the time that is left, saying so if not all."""
    wanted = min(len(dataset.fit_split), MAX_MEASURED)
    left_s = ctx.seconds_left()
    if np.isinf(left_s) or wanted <= N_TIMED:
        return MAX_MEASURED
    few = sample(dataset.fit_split, dataset.n_classes, ctx.seed, N_TIMED)
    s_per_image = extract_features(few, backbone, ctx).ms_per_image / 1000
    n = max(N_TIMED, int(EVIDENCE_SHARE * left_s / s_per_image))
    if n >= wanted:
        return MAX_MEASURED
    ctx.on_note(
        f"The advice is measured on about {n} of {len(dataset.fit_split)} images: more would take "
        f"over {100 * EVIDENCE_SHARE:.0f}% of the time limit."
    )
    return n


def _similarity(
    features: Features,
    labels: Labels,
    dataset: Dataset,
    backbone: Backbone,
    reference: Reference | None,
    seed: int,
) -> DomainSimilarity | None:
    if backbone.weights == "random":
        return None
    return measure_similarity(
        features,
        labels,
        dataset.classes,
        input_px=backbone.input_px,
        reference=reference or shipped_reference(backbone),
        seed=seed,
    )


def _curve(
    penultimate: Scores,
    labels: Labels,
    images: Sequence[LabelledImage],
    folds: NDArray[np.int64],
    probe: ProbeResult,
    n_classes: int,
    ctx: RunContext,
) -> LearningCurve:
    learnt = len(labels) * (1 - 1 / (int(folds.max()) + 1))
    return learning_curve(
        penultimate,
        labels,
        n_classes,
        last=Point(learnt / n_classes, probe.accuracy),
        strength=probe.strength,
        groups=groups_of(tuple(images)),
        seed=ctx.seed,
        device=ctx.device,
    )


@dataclass(frozen=True)
class _Probed:
    """What the probes gave: results, the SVM of the chosen depth, scores of the first, seconds."""

    probes: tuple[ProbeResult, ...]
    layer_svm: ProbeResult
    scores: Scores
    seconds: Mapping[str, float]


def _probe_depths(
    features: Features,
    labels: Labels,
    n_classes: int,
    folds: NDArray[np.int64],
    ctx: RunContext,
) -> _Probed:
    """Cross-validate softmax probes at the end and SVMs at every depth; choose an SVM's depth."""
    n_depths = len(features.pooled)
    plan: list[tuple[int, Loss]] = [(n_depths, "softmax"), (0, "softmax")]
    plan += [(depth, "squared_hinge") for depth in (*range(1, n_depths + 1), 0)]
    tried: list[CrossValidated] = []
    stamps = [time.perf_counter()]
    for i, (depth, loss) in enumerate(plan):
        x = features.at(range(1, n_depths + 1) if depth == 0 else [depth])
        tried.append(
            cross_validate(x, labels, n_classes, folds=folds, loss=loss, device=ctx.device)
        )
        stamps.append(time.perf_counter())
        ctx.on_progress("probes", i + 1, len(plan))
    hits = [t.correct[t.best] for t in tried]
    results = tuple(
        ProbeResult(
            depth,
            loss,
            corrected_accuracy(t.correct, ctx.seed),
            t.strengths[t.best],
            paired_gain(hit, hits[0]),
            loss_gain(t.losses, tried[0].losses),
        )
        for (depth, loss), t, hit in zip(plan, tried, hits, strict=True)
    )
    svms = [i for i, (_, loss) in enumerate(plan) if loss == "squared_hinge"]
    whole, last, *earlier = svms[-1], svms[-2], *svms[:-2]
    cuts = [whole, last, *earlier]  # the first stands unless another is better beyond doubt
    best = significantly_better([hits[i] for i in cuts], [tried[i].log_loss for i in cuts])
    chosen = cuts[best]
    every_setting = np.concatenate([tried[i].correct for i in svms])
    honest = corrected_accuracy(every_setting, ctx.seed)
    scores = tried[0].scores[tried[0].best]
    calibrated = scores / temperature(scores, labels)[0]
    seconds = {"linear_probe": stamps[1] - stamps[0], "layer_svm": stamps[-1] - stamps[2]}
    return _Probed(results, replace(results[chosen], accuracy=honest), calibrated, seconds)
