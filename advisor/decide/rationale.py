"""Explain the ranking of the strategies in sentences for the reports."""

from collections.abc import Sequence

from scipy.special import ndtr

from advisor.decide.candidates import DecisionInputs
from advisor.decide.chance import lacks_signal
from advisor.decide.gain_model import Z, published_gain
from advisor.decide.quadrant import SIMILAR_FROM
from advisor.types.advice import Quadrant, Recommendation
from advisor.types.options import SIMILAR_COST_RATIO, Prefer, tie_tolerance, tie_upper_bound
from advisor.types.profile import Profile
from strategies.registry import baseline, get_strategy

MIN_SHRINKAGE = 0.03
"""The probe's expected accuracy is explained if it is below the measured one by more than this."""
MIN_PRINTED = 0.0005
"""A smaller difference in accuracy would be printed as 0.0 points."""


def rationale_of(
    ranked: Sequence[Recommendation],
    quadrant: Quadrant,
    inputs: DecisionInputs,
    prefer: Prefer,
    forced: str | None,
) -> dict[str, tuple[str, ...]]:
    """Return the sentences that explain each strategy's rank, by strategy.

    Parameters
    ----------
    ranked
        All strategies, best first.
    prefer
        The preference they were ranked by: it determines which accuracies count as equal.
    forced
        The strategy that the user asked for, if any.
    """
    best, profile = ranked[0], inputs.profile
    margin = tie_tolerance(max(r.accuracy.mid for r in ranked), prefer)
    expected = {r.strategy: r.accuracy.mid for r in ranked}
    probe = expected.get(baseline().name, profile.linear_probe.accuracy.mid)
    no_signal = lacks_signal(profile)
    reasons: dict[str, list[str]] = {
        r.strategy: [_no_gain(r, profile) if no_signal else _evidence(r, probe, inputs)]
        for r in ranked
    }
    if forced is not None:
        reasons[best.strategy].append("Ranked first because you asked for it (--strategy).")
    elif no_signal:
        reasons[best.strategy].append("All count as equal; this is one of the cheapest.")
    else:
        reasons[best.strategy].append(_rule(best, ranked, quadrant, margin))
        reasons[best.strategy] += _boundary(best, ranked, inputs, prefer)
    for other in ranked[1:]:
        reasons[other.strategy].append(_comparison(best, other, margin))
    return {name: tuple(sentences) for name, sentences in reasons.items()}


def _no_gain(r: Recommendation, profile: Profile) -> str:
    """Return the sentence on a strategy's expected accuracy where the labels have no signal."""
    chance = f"chance ({100 * profile.majority_share:.1f}%)"
    if get_strategy(r.strategy).role != "baseline":
        return f"No measurement is above {chance}, so none is expected of it either."
    measured = profile.linear_probe.accuracy
    return (
        f"Measured: {measured.percent()} by cross-validation on "
        f"{_count_images(profile.n_measured)}; no measurement is above {chance}."
    )


def _evidence(r: Recommendation, probe: float, inputs: DecisionInputs) -> str:
    """Return the sentence on a strategy's measured or predicted accuracy.

    Parameters
    ----------
    probe
        Expected accuracy of the linear probe.
    """
    strategy, profile = get_strategy(r.strategy), inputs.profile
    if strategy.role == "baseline":
        measured = profile.linear_probe.accuracy
        sentence = (
            f"Measured: {measured.percent()} by cross-validation on "
            f"{_count_images(profile.n_measured)}"
        )
        if r.input_px != profile.input_px:
            sentence += _at_other_size(r, profile)
        elif measured.mid - r.accuracy.mid > MIN_SHRINKAGE:
            sentence += "; with so few images, a lower accuracy is expected on new ones"
        return sentence + "."
    if strategy.head_loss is not None:
        svm = profile.best_svm
        where = "all depths together" if svm.depth == 0 else f"depth {svm.depth}"
        sentence = (
            f"Measured: {svm.accuracy.percent()} on {where}, "
            f"{svm.gain_over_penultimate.points()} relative to the linear probe"
        )
        if r.input_px != profile.input_px:
            sentence += _at_other_size(r, profile)
        return sentence + "."
    error = 1 - probe
    share = 100 * (1 - (1 - r.accuracy.mid) / error) if error > 0 else 0.0
    effect = f"removes {share:.0f}% of" if share >= 0 else f"adds {-share:.0f}% to"
    if not r.cases:
        return (
            f"Assumed, as the benchmarks have no cases of it: it {effect} the linear probe's "
            "error."
        )
    published = published_gain(strategy, profile)
    if published is not None:
        return (
            f"Predicted from published results, {published.source}: it {effect} the linear "
            "probe's error."
        )
    return (
        f"Predicted from benchmark datasets with similar evidence: it {effect} the linear "
        "probe's error."
    )


def _at_other_size(r: Recommendation, profile: Profile) -> str:
    """Return the clause on the accuracy of a head at another size than it was measured at."""
    return f" at {profile.input_px} px; {100 * r.accuracy.mid:.1f}% is expected at {r.input_px} px"


def _rule(
    best: Recommendation,
    ranked: Sequence[Recommendation],
    quadrant: Quadrant,
    margin: float,
) -> str:
    """Return the sentence that compares the recommendation with the rule of thumb."""
    where = _quadrant_words(quadrant)
    if best.strategy == quadrant.rule:
        return f"The rule of thumb for {where} recommends the same."
    rule = next((r for r in ranked if r.strategy == quadrant.rule), None)
    if rule is None:
        return f"The rule of thumb for {where} is {quadrant.rule}, which does not apply here."
    gap = best.accuracy.mid - rule.accuracy.mid
    start = f"The rule of thumb for {where} is {rule.strategy}"
    if gap > margin:
        return (
            f"{start}, but it is expected to be {100 * gap:.1f} points worse, and evidence "
            "decides."
        )
    times = _cost_ratio(rule, best)
    cost = f"costs {times:.0f} times as much" if times >= 1.5 else "is not cheaper"
    return (
        f"{start}; its expected accuracy differs by only {100 * -gap:+.1f} points (up to "
        f"{100 * margin:.1f} count as equal), and it {cost}."
    )


def _boundary(
    best: Recommendation, ranked: Sequence[Recommendation], inputs: DecisionInputs, prefer: Prefer
) -> list[str]:
    """Return sentences on how close the decision is, and on what would change it."""
    sentences = []
    alternatives = [
        r for r in ranked[1:] if r.cases and get_strategy(r.strategy).role != "control"
    ]
    if alternatives:
        alternative = min(alternatives, key=lambda r: _shortfall(best, r, prefer))
        shortfall = _shortfall(best, alternative, prefer)
        probability = _probability_of_excess(best, alternative, shortfall)
        more = "any" if shortfall < MIN_PRINTED else f"{100 * shortfall:.1f} points"
        sentences.append(
            f"{alternative.strategy} would be recommended instead if it did {more} better than "
            f"expected (probability about {100 * probability:.0f}%)."
        )
    similarity = inputs.profile.similarity.score.mid
    if abs(similarity - SIMILAR_FROM) < 0.1:
        sentences.append(
            f"The domain similarity of {similarity:.2f} is close to the threshold of "
            f"{SIMILAR_FROM:.2f} at which the rule of thumb changes."
        )
    return sentences


def _cost_ratio(one: Recommendation, other: Recommendation) -> float:
    """Return the forward passes of one strategy divided by those of another."""
    return one.image_passes / max(other.image_passes, 1e-9)


def _shortfall(best: Recommendation, alternative: Recommendation, prefer: Prefer) -> float:
    """Return by how much an alternative must exceed its expected accuracy to be recommended."""
    needed, times = best.accuracy.mid, _cost_ratio(alternative, best)
    if times < 1 / SIMILAR_COST_RATIO:
        needed -= tie_tolerance(needed, prefer)
    elif times > SIMILAR_COST_RATIO:
        needed = tie_upper_bound(needed, prefer)
    return max(needed - alternative.accuracy.mid, 0.0)


def _probability_of_excess(
    best: Recommendation, alternative: Recommendation, shortfall: float
) -> float:
    """Return the probability that the difference of both is off by at least the shortfall.

    The error of the difference is taken to be as wide as the wider of the two intervals.
    """
    width = max(r.accuracy.high - r.accuracy.low for r in (best, alternative))
    return float(ndtr(-shortfall / max(width / (2 * Z), 1e-6)))


def _comparison(best: Recommendation, other: Recommendation, margin: float) -> str:
    """Return the sentence that compares a strategy's accuracy and cost with the best one's."""
    gap = best.accuracy.mid - other.accuracy.mid
    times = _cost_ratio(other, best)
    cost = f"{times:.0f} times the cost" if times >= 1.5 else "about the same cost"
    if times < 1 / 1.5:
        cost = f"1/{1 / times:.0f} of the cost"
    if abs(gap) <= margin:
        clear = max(round(100 * margin, 1), 0.1)
        return f"Within {clear:g} point{'' if clear == 1 else 's'} of {best.strategy}, at {cost}."
    side = "below" if gap > 0 else "above"
    sentence = f"{100 * abs(gap):.1f} points {side} {best.strategy}, at {cost}."
    if gap < 0 and get_strategy(other.strategy).role == "control":
        sentence += " As the control, it is ranked first only if its lead is beyond chance."
    elif gap < 0 and not other.cases:
        sentence += " Without benchmark cases, it is ranked first only if its lead is certain."
    return sentence


def _quadrant_words(quadrant: Quadrant) -> str:
    size = "few images" if quadrant.size == "small" else "many images"
    domain = {
        "similar": "from a domain near ImageNet",
        "different": "from a domain far from ImageNet",
    }[quadrant.domain]
    return f"{size} {domain}"


def _count_images(n: int) -> str:
    return f"{n:,} image{'' if n == 1 else 's'}"
