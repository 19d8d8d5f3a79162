"""Why each strategy stands where it stands, in sentences with numbers."""

from collections.abc import Sequence

from scipy.stats import norm

from advisor.decide.gain_model import Z
from advisor.decide.quadrant import SIMILAR_FROM
from advisor.types.advice import Quadrant, Recommendation
from advisor.types.options import LIKE_COSTS, Prefer, equal_within, least_better
from advisor.types.profile import Profile, loss_words
from strategies.core.metrics import Interval

MEASURED = ("linear_probe", "layer_svm")
"""Strategies whose accuracy is measured by cross-validation; the others' is predicted."""

WORTH_SAYING = 0.03
"""By so much less than was measured must be expected, that a sentence says so."""
LEAST_SAID = 0.0005
"""A smaller difference would be printed as none."""


def rationale_of(
    ranked: Sequence[Recommendation],
    quadrant: Quadrant,
    profile: Profile,
    prefer: Prefer,
    forced: str | None,
) -> dict[str, tuple[str, ...]]:
    """Say why each strategy stands where it stands.

    Parameters
    ----------
    prefer
        What counted as equal when they were ranked.
    """
    best = ranked[0]
    margin = equal_within(max(r.accuracy.mid for r in ranked), prefer)
    expected = {r.strategy: r.accuracy.mid for r in ranked}
    probe = expected.get("linear_probe", profile.linear_probe.accuracy.mid)
    said: dict[str, list[str]] = {r.strategy: [_evidence(r, probe, profile)] for r in ranked}
    if forced is not None:
        said[best.strategy].append("It stands first because it was asked for (--strategy).")
    else:
        said[best.strategy].append(_rule(best, ranked, quadrant, margin, profile))
        said[best.strategy] += _boundary(best, ranked, profile, prefer)
    for other in ranked[1:]:
        said[other.strategy].append(_comparison(best, other, margin, profile))
    return {name: tuple(sentences) for name, sentences in said.items()}


def _evidence(r: Recommendation, probe: float, profile: Profile) -> str:
    """Say what a strategy was measured or predicted to do; `probe` is what a probe is to reach."""
    if r.strategy == "linear_probe":
        measured = profile.linear_probe.accuracy
        said = f"{measured.percent()} by cross-validation on {profile.n_measured} images"
        gap = r.accuracy.mid - measured.mid
        few = "; so few say little, and less is expected" if gap < -WORTH_SAYING else ""
        return f"Measured: {said}{few}."
    if r.strategy == "layer_svm":
        svm = profile.layer_svm
        where = "all depths together" if svm.depth == 0 else f"depth {svm.depth}"
        over = _points(svm.gain_over_penultimate)
        said = f"Measured: {svm.accuracy.percent()} at {where}; over the linear probe {over}."
        return said + _pilot_of_svm(profile)
    error = 1 - probe
    share = 100 * (1 - (1 - r.accuracy.mid) / error) if error > 0 else 0.0
    does = f"removes {share:.0f}% of" if share >= 0 else f"adds {-share:.0f}% to"
    pilot = profile.pilot
    if pilot is None or r.strategy == "from_scratch":
        return f"Predicted: where the evidence was like this it {does} the linear probe's error."
    return (
        f"Predicted: it {does} the linear probe's error. A short pilot on "
        f"{pilot.n_train} images gained {_points(pilot.gain)} over a probe on the same ones, "
        f"{loss_words(pilot.loss_gain)}."
    )


def _pilot_of_svm(profile: Profile) -> str:
    pilot = profile.pilot
    if pilot is None:
        return ""
    said = f"{_points(pilot.svm_gain)}, {loss_words(pilot.svm_loss_gain)}"
    return f" With quarters and views, on {pilot.n_train} images: {said}."


def _rule(
    best: Recommendation,
    ranked: Sequence[Recommendation],
    quadrant: Quadrant,
    margin: float,
    profile: Profile,
) -> str:
    """Say what the rule of thumb names, and where evidence disagrees, which of the two won."""
    where = _quadrant_words(quadrant)
    if best.strategy == quadrant.rule:
        return f"The rule of thumb for {where} says the same."
    rule = next((r for r in ranked if r.strategy == quadrant.rule), None)
    if rule is None:
        return f"The rule of thumb for {where} is {quadrant.rule}, which does not apply here."
    gap = best.accuracy.mid - rule.accuracy.mid
    words = f"The rule of thumb for {where} is {rule.strategy}; "
    if gap > margin:
        return words + f"the evidence puts it {100 * gap:.1f} points lower, and evidence decides."
    times = _times(rule, best, profile)
    cost = f"costs {times:.0f} times as much" if times >= 1.5 else "costs no less"
    return (
        f"{words}the evidence expects {_gap_words(-gap)} of it, less than the "
        f"{100 * margin:.1f} that would be clear, and it {cost}."
    )


def _boundary(
    best: Recommendation,
    ranked: Sequence[Recommendation],
    profile: Profile,
    prefer: Prefer,
) -> list[str]:
    """Say how far the decision is from turning, and what would turn it."""
    said = []
    alternatives = [r for r in ranked[1:] if r.strategy != "from_scratch"]
    if alternatives:
        alternative = min(alternatives, key=lambda r: _missing(best, r, prefer, profile))
        missing = _missing(best, alternative, prefer, profile)
        chance = _chance(best, alternative, missing)
        more = "any" if missing < LEAST_SAID else f"{100 * missing:.1f} points"
        turn = (
            f"It would be {alternative.strategy} if that did {more} better than expected "
            f"(chance about {100 * chance:.0f}%)"
        )
        can_ask = alternative.strategy not in MEASURED or best.strategy not in MEASURED
        asks = can_ask and profile.pilot is None
        said.append(turn + ("; --pilot on would measure it." if asks else "."))
    similarity = profile.similarity
    if similarity is not None and abs(similarity.score.mid - SIMILAR_FROM) < 0.1:
        said.append(
            f"Similarity {similarity.score.mid:.2f} is close to the border of {SIMILAR_FROM:.2f} "
            "where the rule of thumb changes."
        )
    return said


def _times(dear: Recommendation, cheap: Recommendation, profile: Profile) -> float:
    """Return how many times the forward passes of one strategy those of another are."""
    return profile.image_passes[dear.strategy] / max(profile.image_passes[cheap.strategy], 1e-9)


def _missing(
    best: Recommendation, alternative: Recommendation, prefer: Prefer, profile: Profile
) -> float:
    """Return the accuracy by which a rival must do better than expected to be advised."""
    needed, times = best.accuracy.mid, _times(alternative, best, profile)
    if times < 1 / LIKE_COSTS:
        needed -= equal_within(needed, prefer)
    elif times > LIKE_COSTS:
        needed = least_better(needed, prefer)
    return max(needed - alternative.accuracy.mid, 0.0)


def _chance(best: Recommendation, alternative: Recommendation, missing: float) -> float:
    """Return the chance that a difference is off by so much, taking the wider interval's word."""
    width = max(r.accuracy.high - r.accuracy.low for r in (best, alternative))
    return float(norm.sf(missing / max(width / (2 * Z), 1e-6)))


def _comparison(
    best: Recommendation, other: Recommendation, margin: float, profile: Profile
) -> str:
    gap = best.accuracy.mid - other.accuracy.mid
    times = _times(other, best, profile)
    cost = f"{times:.0f} times the cost" if times >= 1.5 else "about the same cost"
    if times < 1 / 1.5:
        cost = f"1/{1 / times:.0f} of the cost"
    if abs(gap) <= margin:
        clear = max(round(100 * margin, 1), 0.1)
        return f"Within {clear:g} point{'' if clear == 1 else 's'} of {best.strategy}, at {cost}."
    side = "below" if gap > 0 else "above"
    said = f"{100 * abs(gap):.1f} points {side} {best.strategy}, at {cost}."
    if other.strategy == "from_scratch" and gap < 0:
        said += " As the control it comes first only where its lead is beyond chance."
    return said


def _quadrant_words(quadrant: Quadrant) -> str:
    size = "few images" if quadrant.size == "small" else "many images"
    domain = {
        "similar": "near ImageNet",
        "different": "far from ImageNet",
        "unknown": "at an unknown distance from ImageNet",
    }[quadrant.domain]
    return f"{size} {domain}"


def _gap_words(gap: float) -> str:
    return f"{100 * gap:+.1f} points"


def _points(gain: Interval) -> str:
    return f"{100 * gain.mid:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
