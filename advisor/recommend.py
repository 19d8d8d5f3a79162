"""recommend(): a profile to a decision. Pure: the same profile gives the same advice."""

import math
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

from advisor.priors import Priors
from advisor.quadrant import find_quadrant
from advisor.types import (
    Decision,
    Profile,
    Quadrant,
    Recommendation,
    Rejection,
)
from strategies.core.errors import NotApplicable
from strategies.core.fine_tuning import default_steps
from strategies.core.metrics import LEVEL, Interval
from strategies.registry import STRATEGIES

NOISE = 0.01
"""Accuracies that differ by less than this count as equal; the cheaper one is taken."""
MEASURED = ("linear_probe", "layer_svm")
"""Strategies whose accuracy is measured by cross-validation; the others' is predicted."""
BATCH = 32


def recommend(profile: Profile, priors: Priors, forced: str | None = None) -> Decision:
    """Rank the strategies for a task.

    Probes are judged by what was measured. What training would reach is predicted: the log-odds
    that it gained over the linear probe in the benchmarks at this domain similarity. The best
    prediction wins, unless others are within noise of it; of such equals it is the cheapest, or
    the quadrant's rule where costs are alike.

    Parameters
    ----------
    forced
        Name of the strategy to put first whatever the evidence.

    Raises
    ------
    NotApplicable
        If the forced strategy does not apply to this task.
    """
    if forced is not None and forced in profile.why_not:
        raise NotApplicable(f"{forced} does not apply here: {profile.why_not[forced]}")
    quadrant = place(profile)
    candidates = [
        _predict(name, profile, priors) for name in STRATEGIES if name not in profile.why_not
    ]
    ranked = _rank(candidates, quadrant)
    if forced is not None:
        ranked.sort(key=lambda r: r.strategy != forced)
    reasons = _reasons(ranked, quadrant, profile, forced)
    recommendations = tuple(
        Recommendation(
            r.strategy, r.backbone, r.accuracy, r.seconds, r.hyperparameters, reasons[r.strategy]
        )
        for r in ranked
    )
    rejections = tuple(Rejection(name, reason) for name, reason in profile.why_not.items())
    return Decision(quadrant, recommendations, rejections)


def place(profile: Profile) -> Quadrant:
    """Place a task in one of the four quadrants of size and domain."""
    sizes = list(profile.n_by_class.values())
    return find_quadrant(sizes, profile.feature_width, profile.similarity)


def _rank(candidates: list[Recommendation], quadrant: Quadrant) -> list[Recommendation]:
    """Sort best first; of equals the cheapest, and at like costs the better or the rule's."""
    left = sorted(candidates, key=lambda r: -r.accuracy.mid)
    ranked = []
    while left:
        equal = _as_good_as_the_best(left)
        cheapest = min(r.seconds.mid for r in equal)
        alike = _as_good_as_the_best([r for r in equal if r.seconds.mid <= 2 * cheapest])
        taken = min(alike, key=lambda r: (r.strategy != quadrant.rule, r.seconds.mid))
        left.remove(taken)
        ranked.append(taken)
    return ranked


def _as_good_as_the_best(ranked: list[Recommendation]) -> list[Recommendation]:
    """Keep those of some strategies, best first, that the first leads by no more than noise."""
    best = ranked[0]
    return [r for r in ranked if best.accuracy.mid - r.accuracy.mid <= _noise(best, r)]


def _noise(a: Recommendation, b: Recommendation) -> float:
    """Return the difference below which two accuracies count as equal.

    At least `NOISE`. Between a measured and a predicted one also half the predicted interval's
    lower arm, about one standard deviation: a promise must be worth more than its uncertainty.
    """
    predicted = [r for r in (a, b) if r.strategy not in MEASURED]
    if len(predicted) != 1:
        return NOISE
    arm = predicted[0].accuracy.mid - predicted[0].accuracy.low
    return max(NOISE, arm / 2)


def _predict(name: str, profile: Profile, priors: Priors) -> Recommendation:
    if name == "linear_probe":
        accuracy = profile.linear_probe.accuracy
    elif name == "layer_svm":
        accuracy = profile.layer_svm.accuracy
    else:
        accuracy = _trained_accuracy(name, profile, priors)
    return Recommendation(
        strategy=name,
        backbone=profile.backbone,
        accuracy=accuracy,
        seconds=_seconds(name, profile),
        hyperparameters=_first_hyperparameters(name, profile, priors),
        reasons=(),
    )


def _trained_accuracy(name: str, profile: Profile, priors: Priors) -> Interval:
    """Predict what training reaches: the probe's log-odds plus what was gained in the benchmarks.

    In log-odds the same gain means ever fewer points the nearer the probe is to perfect.
    """
    line = priors.log_odds_gain[name]
    if profile.similarity is None:
        gain = line.at(0.5)
        sd = math.hypot(line.sd, abs(line.at_similar - line.at_different) / 2)
    else:
        gain, sd = line.at(profile.similarity.score.mid), line.sd
    probe = profile.linear_probe.accuracy
    nearest = 0.5 / profile.n_measured
    low, mid, high = (
        float(logit(np.clip(p, nearest, 1 - nearest))) for p in (probe.low, probe.mid, probe.high)
    )
    z = float(norm.ppf(0.5 + LEVEL / 2))
    below, above = math.hypot(z * sd, mid - low), math.hypot(z * sd, high - mid)
    centre = mid + gain
    return Interval(*(float(expit(v)) for v in (centre - below, centre, centre + above)))


def _seconds(name: str, profile: Profile) -> Interval:
    """Predict the seconds of one fit on this machine from its forward passes."""
    seconds = profile.image_passes[name] * profile.ms_per_image / 1000
    if name in MEASURED:
        return Interval(seconds, seconds * 1.2 + 1, seconds * 2 + 5)
    return Interval(seconds * 0.6, seconds, seconds * 2)


def _first_hyperparameters(name: str, profile: Profile, priors: Priors) -> dict[str, Any]:
    """Choose where a search starts."""
    if name == "linear_probe":
        return {"strength": profile.linear_probe.strength}
    if name == "layer_svm":
        return {"depth": profile.layer_svm.depth, "strength": profile.layer_svm.strength}
    steps = default_steps(profile.n_train, BATCH)
    if name == "from_scratch":
        return {"lr": 3e-3, "steps": 2 * steps, "hflip": False}
    score = 0.5 if profile.similarity is None else profile.similarity.score.mid
    lr = math.exp(
        math.log(priors.lr.at_different)
        + score * (math.log(priors.lr.at_similar) - math.log(priors.lr.at_different))
    )
    shared: dict[str, Any] = {
        "lr": float(f"{lr:.2g}"),
        "head_lr_factor": 1.0,
        "steps": steps,
        "batch_norm": "frozen",
        "hflip": False,
    }
    if name == "partial_fine_tune":
        return {"frozen_stages": len(profile.depth_names) // 2, **shared}
    return shared | {"label_smoothing": 0.0}


def _reasons(
    ranked: list[Recommendation], quadrant: Quadrant, profile: Profile, forced: str | None
) -> dict[str, tuple[str, ...]]:
    """Say why each strategy stands where it stands, in sentences with numbers."""
    best = ranked[0]
    said: dict[str, list[str]] = {r.strategy: [_evidence(r, profile)] for r in ranked}
    if forced is not None:
        said[best.strategy].append("It stands first because it was asked for (--strategy).")
    elif best.strategy == quadrant.rule:
        said[best.strategy].append(
            f"The rule of thumb for {_quadrant_words(quadrant)} says the same."
        )
    else:
        rule = next((r for r in ranked if r.strategy == quadrant.rule), None)
        if rule is not None:
            said[best.strategy].append(_disagreement(best, rule, quadrant))
    for other in ranked[1:]:
        said[other.strategy].append(_comparison(best, other))
    return {name: tuple(sentences) for name, sentences in said.items()}


def _quadrant_words(quadrant: Quadrant) -> str:
    size = "few pictures" if quadrant.size == "small" else "many pictures"
    domain = {
        "similar": "near ImageNet",
        "different": "far from ImageNet",
        "unknown": "at an unknown distance from ImageNet",
    }[quadrant.domain]
    return f"{size} {domain}"


def _disagreement(best: Recommendation, rule: Recommendation, quadrant: Quadrant) -> str:
    gap = 100 * (best.accuracy.mid - rule.accuracy.mid)
    words = f"The rule of thumb for {_quadrant_words(quadrant)} is {rule.strategy}; "
    if gap > 100 * NOISE:
        return words + f"the evidence puts it {gap:.1f} points lower, and evidence decides."
    return words + "it is no better here by more than noise, and this is cheaper."


def _evidence(r: Recommendation, profile: Profile) -> str:
    if r.strategy == "linear_probe":
        n = profile.n_measured
        return f"Measured: {r.accuracy.percent()} by cross-validation on {n} pictures."
    if r.strategy == "layer_svm":
        svm = profile.layer_svm
        where = "all depths together" if svm.depth == 0 else f"depth {svm.depth}"
        gain = svm.gain_over_penultimate
        return (
            f"Measured: {r.accuracy.percent()} at {where}; over the linear probe "
            f"{100 * gain.mid:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]."
        )
    error = 1 - profile.linear_probe.accuracy.mid
    share = 100 * (1 - (1 - r.accuracy.mid) / error) if error > 0 else 0.0
    does = f"removes {share:.0f}% of" if share >= 0 else f"adds {-share:.0f}% to"
    return f"Predicted: at this domain similarity it usually {does} the linear probe's error."


def _comparison(best: Recommendation, other: Recommendation) -> str:
    gap = 100 * (best.accuracy.mid - other.accuracy.mid)
    times = other.seconds.mid / max(best.seconds.mid, 1e-9)
    cost = f"{times:.0f} times the cost" if times >= 1.5 else "no more cost"
    if times < 1 / 1.5:
        cost = f"1/{1 / times:.0f} of the cost"
    if abs(gap) <= 100 * NOISE:
        return f"Within {100 * NOISE:.0f} point of {best.strategy}, at {cost}."
    side = "below" if gap > 0 else "above"
    return f"{abs(gap):.1f} points {side} {best.strategy}, at {cost}."
