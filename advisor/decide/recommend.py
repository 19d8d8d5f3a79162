"""Rank the strategies for a dataset: a pure function from measurements to a decision."""

import math
from dataclasses import dataclass, replace

from scipy.stats import norm

from advisor.decide.candidates import Candidate, DecisionInputs
from advisor.decide.chance import expected_at_chance, lacks_signal
from advisor.decide.cost import fit_seconds
from advisor.decide.gain_model import Gain, evidence_of, expected_probe_accuracy, predict_gain
from advisor.decide.negative_transfer import probability_scratch_wins
from advisor.decide.priors import Priors, Variant
from advisor.decide.quadrant import find_quadrant
from advisor.decide.rationale import rationale_of
from advisor.types.advice import Decision, Quadrant, Recommendation, Rejection
from advisor.types.options import SIMILAR_COST_RATIO, Prefer, tie_tolerance
from advisor.types.profile import Profile
from strategies.core.errors import NotApplicable
from strategies.registry import reference_control

MIN_PROBABILITY = 0.9
"""A control, or a strategy without benchmark cases, is ranked first only if it wins with this
probability."""


@dataclass(frozen=True)
class _Ranked:
    """A candidate with its recommendation and the predicted gain behind it.

    Attributes
    ----------
    order
        Position in the registry, from cheap to expensive.
    """

    candidate: Candidate
    advice: Recommendation
    gain: Gain
    order: int

    @property
    def mid(self) -> float:
        return self.advice.accuracy.mid

    @property
    def cost(self) -> float:
        """Cost in forward passes, not in seconds: advice does not depend on the machine."""
        return self.candidate.image_passes

    @property
    def rank(self) -> tuple[float, int]:
        """Sort key: by cost, and by order in the registry where costs are equal."""
        return self.cost, self.order


def recommend(
    inputs: DecisionInputs,
    priors: Priors,
    forced: str | None = None,
    prefer: Prefer = "balanced",
) -> Decision:
    """Rank the strategies for a dataset.

    The linear probe's expected accuracy is its cross-validated one, shrunk to the prior: the fewer
    the images, the more. The other strategies' accuracy is predicted from it, by the log-odds that
    they gained over it in benchmarks with similar evidence, and in the pilot if there is one. The
    evidence includes the measured lead of the layer SVM. Among strategies that count as equal to
    the best one, the cheapest is ranked first:

    - ``balanced``: equal within half a point; at similar cost, the more accurate one goes first;
    - ``cheap``: equal within three points. With error rates below one in twenty, this and the half
      point shrink in proportion to the error rate (`tie_tolerance`);
    - ``accuracy``: none count as equal; the most accurate one goes first at any cost.

    A strategy without benchmark cases has the wide gain of `Strategy.fallback_gain`, and is ranked
    after those with cases. Such a strategy, or a control without pretrained weights, is ranked
    first only if it is better than the others with a probability of at least 90%.

    Where no measurement predicts the labels (`lacks_signal`), all are expected at chance.

    Parameters
    ----------
    forced
        Name of the strategy to rank first, whatever the evidence.
    prefer
        How much accuracy to trade for cost, see above.

    Raises
    ------
    NotApplicable
        If the forced strategy does not apply to this dataset.
    """
    for candidate in inputs.candidates:
        if candidate.name == forced and candidate.inapplicable is not None:
            raise NotApplicable(
                f"{forced} does not apply to this dataset: {candidate.inapplicable}"
            )
    quadrant = quadrant_of(inputs.profile)
    predicted = [_predict(c, i, inputs, priors) for i, c in enumerate(inputs.applicable)]
    known = _rank([c for c in predicted if c.advice.cases], quadrant, prefer)
    others = sorted((c for c in predicted if not c.advice.cases), key=lambda c: -c.mid)
    ranked = _proven_first([*known, *others], prefer, inputs, priors)
    if forced is not None:
        ranked.sort(key=lambda c: c.candidate.name != forced)
    advice = [c.advice for c in ranked]
    reasons = rationale_of(advice, quadrant, inputs, prefer, forced)
    rejections = tuple(
        Rejection(c.name, c.inapplicable) for c in inputs.candidates if c.inapplicable is not None
    )
    return Decision(
        quadrant, tuple(replace(r, reasons=reasons[r.strategy]) for r in advice), rejections
    )


def quadrant_of(profile: Profile) -> Quadrant:
    """Place a dataset in one of the four quadrants of size and domain."""
    sizes = list(profile.n_by_class.values())
    return find_quadrant(sizes, profile.feature_width, profile.similarity)


def _rank(candidates: list[_Ranked], quadrant: Quadrant, prefer: Prefer) -> list[_Ranked]:
    """Sort best first; among equals the cheapest first, at similar cost the more accurate one."""
    remaining = sorted(candidates, key=lambda c: (-c.mid, c.rank))
    if prefer == "accuracy":
        return remaining
    ranked = []
    while remaining:
        most = remaining[0].mid
        equal = [c for c in remaining if most - c.mid <= tie_tolerance(most, prefer)]
        if prefer == "cheap":
            taken = min(equal, key=lambda c: c.rank)
        else:
            taken = _take_balanced(equal, quadrant)
        remaining.remove(taken)
        ranked.append(taken)
    return ranked


def _take_balanced(equal: list[_Ranked], quadrant: Quadrant) -> _Ranked:
    """Return the most accurate of those that cost about as little as the cheapest.

    Ties go to the strategy of the rule of thumb.
    """
    cheapest = min(c.cost for c in equal)
    affordable = [c for c in equal if c.cost <= SIMILAR_COST_RATIO * cheapest]
    return max(affordable, key=lambda c: (c.mid, c.candidate.name == quadrant.rule))


def _proven_first(
    ranked: list[_Ranked], prefer: Prefer, inputs: DecisionInputs, priors: Priors
) -> list[_Ranked]:
    """Rank a strategy that needs proof first only if it has it.

    A control that leads without proof becomes second. A strategy without cases that is certainly
    better, by more than what counts as equal, becomes first.
    """
    proven = [c for c in ranked if not _needs_proof(c)]
    if not proven:
        return ranked
    best = max(proven, key=lambda c: c.mid)

    def is_certain(c: _Ranked) -> bool:
        return _probability_of_win(c, best, inputs, priors) >= MIN_PROBABILITY

    first = ranked[0]
    if _needs_proof(first) and not is_certain(first):
        first = proven[0]
    for c in ranked:
        leads = c.mid - best.mid > tie_tolerance(c.mid, prefer)
        if not c.advice.cases and leads and is_certain(c):
            first = c
            break
    return [first, *(c for c in ranked if c is not first)]


def _needs_proof(c: _Ranked) -> bool:
    return c.candidate.strategy.role == "control" or not c.advice.cases


def _probability_of_win(
    c: _Ranked, best: _Ranked, inputs: DecisionInputs, priors: Priors
) -> float:
    """Return the probability that a strategy is better than the best proven one.

    Prediction errors of two strategies with benchmark cases are correlated; without, they are
    taken to be independent.
    """
    if c.candidate.strategy is reference_control() and c.advice.cases:
        return probability_scratch_wins(1, best.candidate.name, inputs, priors)
    sd = math.hypot(c.gain.sd, best.gain.sd)
    return float(norm.sf((best.gain.mean - c.gain.mean) / max(sd, 1e-6)))


def _predict(candidate: Candidate, order: int, inputs: DecisionInputs, priors: Priors) -> _Ranked:
    """Predict accuracy and seconds of a strategy with the best of its benchmarked settings."""
    variant, gain = _best_variant(candidate, inputs, priors)
    is_baseline = candidate.strategy.role == "baseline"
    cases = priors.measured.cases if is_baseline else variant.cases if variant else 0
    if lacks_signal(inputs.profile, inputs.pilot):
        accuracy = expected_at_chance(inputs, priors, None if is_baseline else gain)
    else:
        odds = expected_probe_accuracy(inputs.profile, priors)
        accuracy = (odds if is_baseline else odds.plus(gain)).accuracy
    advice = Recommendation(
        strategy=candidate.name,
        backbone=inputs.profile.backbone,
        accuracy=accuracy,
        seconds=fit_seconds(candidate, inputs.profile, priors),
        hyperparameters={
            **candidate.hyperparameters,
            **(variant.hyperparameters if variant else {}),
        },
        reasons=(),
        image_passes=candidate.image_passes,
        cases=cases,
    )
    return _Ranked(candidate, advice, gain, order)


def _best_variant(
    candidate: Candidate, inputs: DecisionInputs, priors: Priors
) -> tuple[Variant | None, Gain]:
    """Return the variant with the highest predicted gain, the first one of equals.

    Without benchmark cases there is none, and the gain is that of `Strategy.fallback_gain`.
    """
    evidence = evidence_of(inputs.profile)
    predicted = [
        (v, predict_gain(v, evidence, inputs.pilot, priors))
        for v in priors.variants
        if v.strategy == candidate.name
    ]
    if not predicted:
        prior = candidate.strategy.fallback_gain
        return None, Gain(prior.mean, prior.sd, prior.mean)
    return max(predicted, key=lambda pair: pair[1].mean)
