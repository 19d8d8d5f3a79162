"""Rank the strategies for a dataset: a pure function from measurements to a decision."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.special import ndtr

from advisor.decide.candidates import Candidate, DecisionInputs
from advisor.decide.chance import expected_at_chance, lacks_signal
from advisor.decide.cost import fit_seconds
from advisor.decide.frontier import (
    BUDGETS_S,
    best_size,
    ends_in_time,
    fallback_within,
    value_within,
)
from advisor.decide.gain_model import (
    Gain,
    evidence_of,
    expected_accuracy,
    gain_model,
    measured_probe,
    predict_gain,
)
from advisor.decide.negative_transfer import probability_scratch_wins
from advisor.decide.priors import Priors
from advisor.decide.quadrant import find_quadrant
from advisor.decide.rationale import rationale_of
from advisor.types.advice import (
    BudgetPick,
    Decision,
    Frontier,
    Quadrant,
    Recommendation,
    Rejection,
)
from advisor.types.durations import duration, time_limit
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
    value
        Expected accuracy, if the fit must end in time.
    order
        Position in the registry, from cheap to expensive.
    """

    candidate: Candidate
    advice: Recommendation
    gain: Gain
    value: float
    order: int

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
    time_s: float = math.inf,
) -> Decision:
    """Rank the strategies for a dataset.

    The linear probe's expected accuracy is its cross-validated one, shrunk to the prior: the fewer
    the images, the more. The other strategies' accuracy is predicted from it, by the log-odds that
    they gained over it in benchmarks with similar evidence. The evidence includes the measured
    lead of the layer SVM. Among strategies that count as equal to the best one, the cheapest is
    ranked first:

    - ``balanced``: equal within half a point; at similar cost, the more accurate one goes first;
    - ``cheap``: equal within three points. With error rates below one in twenty, this and the half
      point shrink in proportion to the error rate (`tie_tolerance`);
    - ``accuracy``: none count as equal; the most accurate one goes first at any cost.

    On a transformer, published gains take the place of those of the benchmarks (`gain_model`). A
    strategy without cases has the wide gain of `Strategy.fallback_gain`, and is ranked after those
    with cases. Such a strategy, or a control without pretrained weights, is ranked
    first only if it is better than the others with a probability of at least 90%.

    Every strategy is ranked with its best input size. If a fit must end within a time, a strategy
    counts with the accuracy that it reaches in time, or else with that of a linear probe. A
    strategy that will not end in time is rejected, unless none will.

    Where no measurement predicts the labels (`lacks_signal`), all are expected at chance.

    Parameters
    ----------
    forced
        Name of the strategy to rank first, whatever the evidence.
    prefer
        How much accuracy to trade for cost, see above.
    time_s
        Time for the fit on this machine in seconds.

    Raises
    ------
    NotApplicable
        If the forced strategy does not apply to this dataset.
    """
    _check_forced(forced, inputs)
    quadrant = quadrant_of(inputs.profile)
    options = options_of(inputs, priors)
    ranked, late = _ranking(options, inputs, priors, forced, prefer, time_s)
    advice = [c.advice for c in ranked]
    reasons = rationale_of(advice, quadrant, inputs, prefer, forced)
    return Decision(
        quadrant,
        tuple(replace(r, reasons=reasons[r.strategy]) for r in advice),
        _rejections(inputs, late, time_s),
        options,
    )


def frontier_of(
    options: tuple[Recommendation, ...], inputs: DecisionInputs, priors: Priors, prefer: Prefer
) -> Frontier:
    """Return what can be expected within each of several times (`BUDGETS_S`).

    Times in which even the cheapest fit is unlikely to end are left out.

    Parameters
    ----------
    options
        Those of the decision (`options_of`).
    """
    per_pass_s = inputs.profile.ms_per_image / 1000
    picks: list[BudgetPick] = []
    for time_s in (*BUDGETS_S, math.inf):
        ranked, _ = _ranking(options, inputs, priors, None, prefer, time_s)
        best = ranked[0].advice
        if ends_in_time(best, time_s):
            limit = None if math.isinf(time_s) else time_s
            passes = None if limit is None else limit / per_pass_s
            pick = (best.strategy, best.input_px, best.accuracy, best.seconds)
            picks.append(BudgetPick(limit, passes, *pick))
    return Frontier(options, tuple(picks))


def options_of(inputs: DecisionInputs, priors: Priors) -> tuple[Recommendation, ...]:
    """Return every strategy that applies at every input size, with what is predicted of it.

    Without benchmark cases nothing is known about smaller inputs, and a strategy has one size.
    """
    known = [c for c in inputs.candidates if priors.cases(c.name) or c in inputs.full_size]
    return tuple(_option(c, inputs, priors) for c in known if c.inapplicable is None)


def _check_forced(forced: str | None, inputs: DecisionInputs) -> None:
    for candidate in inputs.candidates:
        if candidate.name == forced and candidate.inapplicable is not None:
            raise NotApplicable(
                f"{forced} does not apply to this dataset: {candidate.inapplicable}"
            )


def _ranking(
    options: Sequence[Recommendation],
    inputs: DecisionInputs,
    priors: Priors,
    forced: str | None,
    prefer: Prefer,
    time_s: float,
) -> tuple[list[_Ranked], list[_Ranked]]:
    """Return the strategies with their best sizes, best first, and those that end too late."""
    sized = _sized(options, inputs, priors, prefer, time_s)
    in_time, late = _split_by_time(sized, time_s, forced)
    known = _rank([c for c in in_time if c.advice.cases], quadrant_of(inputs.profile).rule, prefer)
    others = sorted((c for c in in_time if not c.advice.cases), key=lambda c: -c.value)
    ranked = _proven_first([*known, *others], prefer, inputs, priors)
    if forced is not None:
        ranked.sort(key=lambda c: c.candidate.name != forced)
    return ranked, late


def _sized(
    options: Sequence[Recommendation],
    inputs: DecisionInputs,
    priors: Priors,
    prefer: Prefer,
    time_s: float,
) -> list[_Ranked]:
    """Return every strategy with its best input size within a time."""
    fallback = fallback_within(options, time_s)
    found = []
    for order, name in enumerate(dict.fromkeys(o.strategy for o in options)):
        best = best_size([o for o in options if o.strategy == name], time_s, fallback, prefer)
        candidate = inputs.candidate(name, best.input_px)
        gain, value = _gain(candidate, inputs, priors), value_within(best, time_s, fallback)
        found.append(_Ranked(candidate, best, gain, value, order))
    return found


def _split_by_time(
    predicted: list[_Ranked], time_s: float, forced: str | None
) -> tuple[list[_Ranked], list[_Ranked]]:
    """Return the strategies that will end in time, and those that will not.

    Where all are late, and for the forced one, time is no reason against them.
    """
    late = [c for c in predicted if not ends_in_time(c.advice, time_s)]
    late = [c for c in late if c.candidate.name != forced] if len(late) < len(predicted) else []
    return [c for c in predicted if c not in late], late


def _rejections(
    inputs: DecisionInputs, late: list[_Ranked], time_s: float
) -> tuple[Rejection, ...]:
    """Return the strategies that do not apply, and those that will not end in time."""
    refused = [Rejection(c.name, c.inapplicable) for c in inputs.full_size if c.inapplicable]
    refused += [Rejection(c.candidate.name, _too_slow(c.advice, time_s)) for c in late]
    return tuple(refused)


def _too_slow(late: Recommendation, time_s: float) -> str:
    return (
        f"one fit takes about {duration(late.seconds.mid)} at {late.input_px} px, longer than the "
        f"limit of {time_limit(time_s)}"
    )


def quadrant_of(profile: Profile) -> Quadrant:
    """Place a dataset in one of the four quadrants of size and domain."""
    sizes = list(profile.n_by_class.values())
    return find_quadrant(sizes, profile.feature_width, profile.similarity.score)


def _rank(candidates: list[_Ranked], rule: str, prefer: Prefer) -> list[_Ranked]:
    """Sort best first; among equals the cheapest first, at similar cost the more accurate one."""
    remaining = sorted(candidates, key=lambda c: (-c.value, c.rank))
    if prefer == "accuracy":
        return remaining
    ranked = []
    while remaining:
        most = remaining[0].value
        equal = [c for c in remaining if most - c.value <= tie_tolerance(most, prefer)]
        if prefer == "cheap":
            taken = min(equal, key=lambda c: c.rank)
        else:
            taken = _take_balanced(equal, rule)
        remaining.remove(taken)
        ranked.append(taken)
    return ranked


def _take_balanced(equal: list[_Ranked], rule: str) -> _Ranked:
    """Return the most accurate of those that cost about as little as the cheapest.

    Ties go to the strategy of the rule of thumb.
    """
    cheapest = min(c.cost for c in equal)
    affordable = [c for c in equal if c.cost <= SIMILAR_COST_RATIO * cheapest]
    return max(affordable, key=lambda c: (c.value, c.candidate.name == rule))


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
    best = max(proven, key=lambda c: c.value)

    def is_certain(c: _Ranked) -> bool:
        return _probability_of_win(c, best, inputs, priors) >= MIN_PROBABILITY

    first = ranked[0]
    if _needs_proof(first) and not is_certain(first):
        first = proven[0]
    for c in ranked:
        leads = c.value - best.value > tie_tolerance(c.value, prefer)
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
    if c.candidate.name == reference_control().name and c.advice.cases:
        return probability_scratch_wins(1, best.candidate.name, inputs, priors)
    sd = math.hypot(c.gain.sd, best.gain.sd)
    return float(ndtr((c.gain.mean - best.gain.mean) / max(sd, 1e-6)))


def _option(candidate: Candidate, inputs: DecisionInputs, priors: Priors) -> Recommendation:
    """Predict accuracy and seconds of a strategy at an input size."""
    profile, gain = inputs.profile, _gain(candidate, inputs, priors)
    if lacks_signal(profile):
        accuracy = expected_at_chance(inputs, priors, gain)
    else:
        spread = priors.spread(candidate.strategy)
        base = measured_probe(profile, priors)
        accuracy = expected_accuracy(base, gain, profile.n_measured, spread)
    px = candidate.input_px or profile.input_px
    return Recommendation(
        strategy=candidate.name,
        backbone=profile.backbone,
        accuracy=accuracy,
        seconds=fit_seconds(candidate, profile, priors),
        hyperparameters=candidate.strategy.hyperparameters(),
        reasons=(),
        image_passes=candidate.image_passes,
        cases=gain_model(candidate.strategy, profile, priors).cases,
        input_px=px,
        measured=candidate.strategy.head_loss is not None and px == profile.input_px,
        peak_bytes=candidate.peak_bytes,
    )


def _gain(candidate: Candidate, inputs: DecisionInputs, priors: Priors) -> Gain:
    """Return the predicted gain over the linear probe."""
    model = gain_model(candidate.strategy, inputs.profile, priors)
    evidence = evidence_of(inputs.profile, candidate.input_px)
    return predict_gain(model, evidence, priors)
