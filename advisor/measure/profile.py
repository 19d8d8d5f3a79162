"""Measure the profile of a dataset with a backbone: probes, similarity, controls and costs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from advisor.measure.knn import knn_accuracy
from advisor.measure.learning_curve import learning_curve
from advisor.measure.paired import loss_gain, paired_gain
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.measure.random_init_control import measure_random_init_control, pixel_probe
from advisor.similarity.backbone_statistics import measure_backbone_statistics
from advisor.similarity.domain_similarity import measure_similarity
from advisor.similarity.reference import Reference, shipped_reference
from advisor.similarity.transferability import rate_features
from advisor.types.profile import LearningCurve, ProbeResult, Profile
from advisor.types.similarity import BackboneStatistics
from strategies.core.context import RunContext
from strategies.core.folds import fold_numbers
from strategies.core.metrics import Labels, Scores
from strategies.data.dataset import Dataset, LabelledImage, groups_of, labels_of
from strategies.data.sampling import stratified_rows
from strategies.heads.batches import Loss
from strategies.heads.cross_validation import (
    CrossValidated,
    corrected_accuracy,
    cross_validate,
    significantly_better,
    temperature,
)
from strategies.models.backbone import Backbone, half_size
from strategies.models.domain_shift import mean_shift, measure_moments
from strategies.models.features import (
    INFERENCE_BATCH,
    Features,
    extract_features,
    not_cached,
    time_features,
)
from strategies.models.flip_symmetry import measure_flip_asymmetry
from strategies.training.costs.throughput import measure_training_cost

MAX_MEASURED, MIN_PER_CLASS = 2000, 5
"""Sample for the probes: at most this many images, but at least 5 per class."""
EVIDENCE_SHARE, N_TIMED = 0.2, 64
"""Under a time limit, the forward pass over the images may take this share of the time left; its
speed is measured on `N_TIMED` images, even if their features are cached."""
TIMED_PX = 96
"""Training is timed at half the input size, but at least this: its cost relative to a forward
pass is the same."""


def measure(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, reference: Reference | None = None
) -> tuple[Profile, ProbeEvidence]:
    """Measure a dataset without training a network; also return what the data findings need.

    Parameters
    ----------
    reference
        Reference from the user's own images, for the backbone's own statistics; default: the one
        that this program ships.

    Raises
    ------
    OutOfTime
        If the deadline passes during the forward pass over the images.
    """
    shift = measure_moments(dataset.fit_split, ctx)
    images = sample(dataset.fit_split, ctx.seed, _affordable_images(dataset, backbone, ctx))
    labels = labels_of(images)
    features = extract_features(images, backbone, ctx)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(images))
    probed = _probe_depths(features, labels, dataset.n_classes, folds, ctx)
    control = measure_random_init_control(images, features, dataset.n_classes, backbone, ctx)
    training = measure_training_cost(dataset, half_size(backbone, TIMED_PX), ctx)
    last = features.pooled[-1]
    counts = np.bincount(labels_of(dataset.fit_split), minlength=dataset.n_classes)
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
        similarity=measure_similarity(shift, ctx.seed),
        probes=probed.probes,
        best_svm=probed.best_svm,
        majority_share=float(counts.max() / counts.sum()),
        n_measured=len(images),
        ms_per_image=features.ms_per_image,
        random_probes=control.probes,
        curve=_curve(last, labels, images, folds, probed.probes[0], dataset.n_classes, ctx),
        knn=knn_accuracy(last, labels, dataset.n_classes, folds),
        transferability=rate_features(last, labels, ctx.seed),
        transfer_gain=control.gain,
        pixel_probe=pixel_probe(images, dataset.n_classes, ctx.seed),
        head_s=probed.seconds,
        build_s=training.build_s,
        passes_per_trained_image=training.passes_per_image,
        domain_shift=mean_shift(shift.moments),
        flip_asymmetry=measure_flip_asymmetry(images, backbone, ctx),
        family=backbone.family,
        n_layers=backbone.n_layers,
        backbone_statistics=_statistics(features, images, dataset, backbone, reference, ctx.seed),
    )
    return profile, ProbeEvidence(backbone.input_px, images, probed.scores, last, seed=ctx.seed)


def sample(
    split: Sequence[LabelledImage], seed: int, most: int = MAX_MEASURED
) -> tuple[LabelledImage, ...]:
    """Draw about `most` images, in proportion to the classes but at least a few of each."""
    return tuple(split[i] for i in stratified_rows(split, most, MIN_PER_CLASS, seed))


def _affordable_images(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> int:
    """Return how many images can be measured in the time left, with a note if not all."""
    wanted = min(len(dataset.fit_split), MAX_MEASURED)
    left_s = ctx.seconds_left()
    if np.isinf(left_s):
        return MAX_MEASURED
    few = sample(dataset.fit_split, ctx.seed, N_TIMED)
    n_timed = N_TIMED if len(not_cached(few, backbone, ctx)) else INFERENCE_BATCH
    s_per_image = time_features(few[:n_timed], backbone, ctx) / 1000
    n = max(N_TIMED, int(EVIDENCE_SHARE * left_s / s_per_image))
    if n >= wanted:
        return MAX_MEASURED
    ctx.reporter.on_note(
        f"The advice is based on about {n} of {len(dataset.fit_split)} images: measuring more "
        f"would take over {100 * EVIDENCE_SHARE:.0f}% of the time left."
    )
    return n


def _statistics(
    features: Features,
    images: tuple[LabelledImage, ...],
    dataset: Dataset,
    backbone: Backbone,
    reference: Reference | None,
    seed: int,
) -> BackboneStatistics | None:
    """Return the statistics of the backbone's own layers and head; None for random weights."""
    if backbone.weights == "random":
        return None
    return measure_backbone_statistics(
        features,
        labels_of(images),
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
) -> LearningCurve | None:
    """Measure the learning curve; its last point is the cross-validated probe.

    None if all images are of one group, so that there is a single fold and nothing to train on.
    """
    if not folds.any():
        return None
    n_train = len(labels) * (1 - 1 / (int(folds.max()) + 1))
    return learning_curve(
        penultimate,
        labels,
        n_classes,
        last=(n_train / n_classes, probe.accuracy),
        strength=probe.strength,
        groups=groups_of(tuple(images)),
        seed=ctx.seed,
        device=ctx.head_device,
    )


@dataclass(frozen=True)
class _ProbeResults:
    """Results of all probes.

    Attributes
    ----------
    best_svm
        The SVM at the chosen depth.
    scores
        Calibrated out-of-fold scores of the first probe.
    seconds
        Time of the probes, by loss.
    """

    probes: tuple[ProbeResult, ...]
    best_svm: ProbeResult
    scores: Scores
    seconds: Mapping[str, float]


def _probe_depths(
    features: Features,
    labels: Labels,
    n_classes: int,
    folds: NDArray[np.int64],
    ctx: RunContext,
) -> _ProbeResults:
    """Cross-validate softmax probes and SVMs at every depth, and choose the depth of the SVM."""
    n_depths = len(features.pooled)
    plan: list[tuple[int, Loss]] = [(n_depths, "softmax"), (0, "softmax")]
    plan += [(depth, "squared_hinge") for depth in (*range(1, n_depths + 1), 0)]
    results: list[CrossValidated] = []
    stamps = [time.perf_counter()]
    for i, (depth, loss) in enumerate(plan):
        x = features.at(range(1, n_depths + 1) if depth == 0 else [depth])
        results.append(
            cross_validate(x, labels, n_classes, folds=folds, loss=loss, device=ctx.head_device)
        )
        stamps.append(time.perf_counter())
        ctx.reporter.on_progress("probes", i + 1, len(plan))
    hits = [r.correct[r.best] for r in results]
    probes = tuple(
        ProbeResult(
            depth,
            loss,
            corrected_accuracy(r.correct, ctx.seed),
            r.strengths[r.best],
            paired_gain(hit, hits[0]),
            loss_gain(r.losses, results[0].losses),
        )
        for (depth, loss), r, hit in zip(plan, results, hits, strict=True)
    )
    svms = [i for i, (_, loss) in enumerate(plan) if loss == "squared_hinge"]
    whole, last, *earlier = svms[-1], svms[-2], *svms[:-2]
    cuts = [whole, last, *earlier]  # the first is chosen unless another is significantly better
    best = significantly_better([hits[i] for i in cuts], [results[i].log_loss for i in cuts])
    chosen = cuts[best]
    every_setting = np.concatenate([results[i].correct for i in svms])
    corrected = corrected_accuracy(every_setting, ctx.seed)
    scores = results[0].scores
    calibrated = scores / temperature(scores, labels)[0]
    seconds = {"softmax": stamps[1] - stamps[0], "squared_hinge": stamps[-1] - stamps[2]}
    best_svm = replace(probes[chosen], accuracy=corrected)
    return _ProbeResults(probes, best_svm, calibrated, seconds)
