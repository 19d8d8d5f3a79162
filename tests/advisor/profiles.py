"""Hand-made profiles and priors, for tests of the decision."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from advisor.decide.candidates import Candidate, DecisionInputs
from advisor.decide.priors import (
    SPREAD_KINDS,
    GainModel,
    Offset,
    Prior,
    Priors,
    Spread,
)
from advisor.types.profile import LearningCurve, ProbeResult, Profile
from advisor.types.similarity import BackboneStatistics, DomainSimilarity, HeadEvidence
from strategies.core.metrics import Interval, proportion
from strategies.registry import STRATEGIES

PASSES = {"partial_fine_tune": 12_000.0, "full_fine_tune": 15_000.0, "from_scratch": 30_000.0}
BENCHMARKED = ("linear_probe", "layer_svm", *PASSES)
"""Strategies that the priors by hand have cases of."""
SIZES = (224, 160, 96)
NAMES = ("blocks.0", "blocks.2", "penultimate")


def similarity_of(score: float) -> DomainSimilarity:
    return DomainSimilarity(
        score=Interval(max(score - 0.03, 0), score, min(score + 0.03, 1)),
        shift_nats=Interval(0.1, 0.1, 0.1),
        reference="ImageNet",
        n_images=300,
        between=(None, None),
    )


def statistics_of(*nats: float, head: HeadEvidence | None = None) -> BackboneStatistics:
    """Return statistics with these BatchNorm shifts by depth."""
    shifts = tuple(Interval(x, x, x) for x in nats)
    return BackboneStatistics(
        reference="ImageNet",
        shift_nats=shifts[0] if shifts else None,
        per_depth=shifts,
        kernel_distance=None,
        p_value=None,
        head=head,
    )


def probe(depth: int, loss: str, accuracy: float, gain: float = 0.0, n: int = 400) -> ProbeResult:
    gains = Interval(gain - 0.02, gain, gain + 0.02)
    error = 1 - min(accuracy, 1 - 0.5 / n)
    gap = math.log((error + gain) / error) if error + gain > 0 else 0.0
    losses = Interval(gap - 0.05, gap, gap + 0.05)
    return ProbeResult(depth, loss, proportion(accuracy, n), 1e-4, gains, losses)


def profile_of(
    *,
    n_per_class: int = 40,
    n_classes: int = 10,
    similarity: float = 0.8,
    linear: float = 0.9,
    svm: float = 0.9,
    svm_depth: int = 2,
    **changes: Any,
) -> Profile:
    """Return a profile; `changes` replace its fields."""
    n = n_per_class * n_classes
    best_svm = probe(svm_depth, "squared_hinge", svm, svm - linear)
    base = Profile(
        n=n,
        n_train=round(0.8 * n),
        n_val=round(0.2 * n),
        n_by_class={f"class{i}": n_per_class for i in range(n_classes)},
        imbalance=1.0,
        median_side_px=200.0,
        backbone="tf_efficientnet_lite0",
        input_px=224,
        feature_width=1280,
        depth_names=NAMES,
        similarity=similarity_of(similarity),
        probes=(
            probe(3, "softmax", linear),
            probe(0, "softmax", linear),
            *(probe(d, "squared_hinge", svm if d == svm_depth else svm - 0.05) for d in (1, 2, 3)),
            probe(0, "squared_hinge", svm - 0.01),
        ),
        best_svm=best_svm,
        majority_share=1 / n_classes,
        n_measured=n,
        ms_per_image=10.0,
        backbone_statistics=statistics_of(0.1, 0.1, 0.1),
    )
    return replace(base, **changes)


def inputs_of(
    profile: Profile | None = None,
    *,
    image_passes: Mapping[str, float] | None = None,
    inapplicable: Mapping[str, str] | None = None,
    **given: Any,
) -> DecisionInputs:
    """Return the inputs of a decision for a profile, or for the profile of `profile_of`.

    The candidates are the strategies that the priors by hand know.

    Parameters
    ----------
    image_passes, inapplicable
        Costs, and reasons against strategies, that replace the usual ones.
    """
    profile = profile or profile_of(**given)
    costs = {"linear_probe": profile.n, "layer_svm": profile.n, **PASSES, **(image_passes or {})}
    candidates = tuple(
        Candidate(
            STRATEGIES[name].starting_point(profile),
            costs[name],
            (inapplicable or {}).get(name),
        )
        for name in BENCHMARKED
    )
    return DecisionInputs(profile, candidates)


def with_sizes(inputs: DecisionInputs) -> DecisionInputs:
    """Return the inputs with every strategy at three sizes."""
    candidates = tuple(
        Candidate(c.strategy.with_input_px(px), c.image_passes * (px / 224) ** 2, c.inapplicable)
        for c in inputs.candidates
        for px in SIZES
    )
    return replace(inputs, candidates=candidates)


def curve_of(now: float, later: float, n_per_class: float = 30) -> LearningCurve:
    return LearningCurve(
        measured=((n_per_class, proportion(now, 400)),),
        extrapolated=((2 * n_per_class, Interval(later - 0.01, later, min(later + 0.01, 1))),),
    )


NO_WEIGHTS = dict.fromkeys(
    (
        "far",
        "probe",
        "svm",
        "size",
        "total",
        "classes",
        "pixels",
        "neighbours",
        "px",
        "lost",
        "lost_near",
    ),
    0.0,
)
MEASURED_LEAD = {**NO_WEIGHTS, "svm": 0.3}
"""Weights of a model whose predicted lead is the measured lead of the SVM."""
WEIGHTS = {
    **NO_WEIGHTS,
    "far": 0.5,
    "probe": -0.2,
    "svm": 0.1,
    "size": 0.2,
    "total": 0.1,
    "pixels": 0.1,
    "lost": -0.2,
}


def model_of(strategy: str, intercept: float, **given: Any) -> GainModel:
    """Return a gain model with `WEIGHTS`; `given` replaces its fields."""
    return replace(GainModel(strategy, intercept, WEIGHTS, 0.6, 0.2, 0.5, 0.6, 12), **given)


def with_gains(priors: Priors, *models: GainModel) -> Priors:
    """Return the priors with these gain models in place of those of the same strategies."""
    return replace(priors, gains={**priors.gains, **{m.strategy: m for m in models}})


def priors_by_hand() -> Priors:
    """Return made-up priors, for tests of how priors are used."""
    models = (
        GainModel("linear_probe", 0.0, NO_WEIGHTS, 0.2, 0.1, 0.2, 0.2, 12),
        GainModel("layer_svm", 0.2, MEASURED_LEAD, 0.2, 0.2, 0.1, 0.2, 12),
        model_of("partial_fine_tune", 0.3),
        model_of("full_fine_tune", 0.4),
        model_of("from_scratch", -1.0),
    )
    return Priors(
        evidence={
            "far": Prior(0.4, 0.3),
            "probe": Prior(1.5, 1.0),
            "svm": Prior(0.2, 0.3),
            "size": Prior(1.2, 0.4),
            "total": Prior(2.0, 0.6),
            "classes": Prior(1.5, 1.0),
            "pixels": Prior(-1.0, 1.0),
            "neighbours": Prior(-0.3, 0.2),
            "px": Prior(0.0, 1.0),
            "lost": Prior(0.0, 1.0),
            "lost_near": Prior(0.0, 1.0),
            "control": Prior(0.2, 0.1),
        },
        spreads=dict.fromkeys(SPREAD_KINDS, Spread(0.2, 1.0)),
        gains={model.strategy: model for model in models},
        shared=0.4,
        cost={name: Offset(0.0, 0.25, 12) for name in BENCHMARKED},
    )
