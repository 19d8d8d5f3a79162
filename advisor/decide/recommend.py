"""Rank the strategies for a dataset: a pure function from a profile to a decision."""

from dataclasses import dataclass, replace
from typing import Any

from advisor.decide.cost import fit_seconds
from advisor.decide.gain_model import Gain, expected_probe_accuracy, predict_gain
from advisor.decide.negative_transfer import SCRATCH, probability_scratch_wins
from advisor.decide.priors import Priors, Variant
from advisor.decide.quadrant import find_quadrant
from advisor.decide.rationale import MEASURED, rationale_of
from advisor.types.advice import Decision, Quadrant, Recommendation, Rejection
from advisor.types.options import SIMILAR_COST_RATIO, Prefer, tie_tolerance
from advisor.types.profile import Profile
from strategies.core.errors import NotApplicable
from strategies.registry import STRATEGIES
from strategies.training.recipe import BATCH_SIZE, default_steps

MIN_SCRATCH_PROBABILITY = 0.9
"""Training from scratch, the control, is ranked first only if it wins with this probability."""


@dataclass(frozen=True)
class _Candidate:
    """A strategy with its recommendation and its cost.

    Attributes
    ----------
    cost
        In forward passes, not in measured seconds, so that advice does not depend on the machine.
    """

    advice: Recommendation
    cost: float

    @property
    def name(self) -> str:
        return self.advice.strategy

    @property
    def mid(self) -> float:
        return self.advice.accuracy.mid

    @property
    def rank(self) -> tuple[float, int]:
        """Sort key: by cost, and by order in the registry where costs are equal."""
        return self.cost, list(STRATEGIES).index(self.name)


def recommend(
    profile: Profile, priors: Priors, forced: str | None = None, prefer: Prefer = "balanced"
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

    Training from scratch is the control. It is ranked first only if the probability that it is
    better is at least 90%.

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
    if forced is not None and forced in profile.inapplicable:
        raise NotApplicable(
            f"{forced} does not apply to this dataset: {profile.inapplicable[forced]}"
        )
    quadrant = quadrant_of(profile)
    candidates = [
        _predict(name, profile, priors) for name in STRATEGIES if name not in profile.inapplicable
    ]
    ranked = _demote_scratch(_rank(candidates, quadrant, prefer), profile, priors)
    if forced is not None:
        ranked.sort(key=lambda c: c.name != forced)
    advice = [c.advice for c in ranked]
    reasons = rationale_of(advice, quadrant, profile, prefer, forced)
    rejections = tuple(Rejection(name, reason) for name, reason in profile.inapplicable.items())
    return Decision(
        quadrant, tuple(replace(r, reasons=reasons[r.strategy]) for r in advice), rejections
    )


def quadrant_of(profile: Profile) -> Quadrant:
    """Place a dataset in one of the four quadrants of size and domain."""
    sizes = list(profile.n_by_class.values())
    return find_quadrant(sizes, profile.feature_width, profile.similarity)


def _rank(candidates: list[_Candidate], quadrant: Quadrant, prefer: Prefer) -> list[_Candidate]:
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


def _demote_scratch(
    ranked: list[_Candidate], profile: Profile, priors: Priors
) -> list[_Candidate]:
    """Move training from scratch to second place if its lead is not beyond chance."""
    first, *others = ranked
    if first.name != SCRATCH or not others:
        return ranked
    best = max(others, key=lambda c: c.mid)
    if probability_scratch_wins(1, best.name, profile, priors) >= MIN_SCRATCH_PROBABILITY:
        return ranked
    return [others[0], first, *others[1:]]


def _take_balanced(equal: list[_Candidate], quadrant: Quadrant) -> _Candidate:
    """Return the most accurate of those that cost about as little as the cheapest.

    Ties go to the strategy of the rule of thumb.
    """
    cheapest = min(c.cost for c in equal)
    affordable = [c for c in equal if c.cost <= SIMILAR_COST_RATIO * cheapest]
    return max(affordable, key=lambda c: (c.mid, c.name == quadrant.rule))


def _predict(name: str, profile: Profile, priors: Priors) -> _Candidate:
    """Predict the accuracy and the seconds of a strategy with its best first hyperparameters."""
    odds = expected_probe_accuracy(profile, priors)
    chosen: dict[str, Any] = {}
    if name != "linear_probe":
        variant, gain = _best_variant(name, profile, priors)
        odds = odds.plus(gain)
        chosen = dict(variant.hyperparameters)
    advice = Recommendation(
        strategy=name,
        backbone=profile.backbone,
        accuracy=odds.accuracy,
        seconds=fit_seconds(name, profile, priors),
        hyperparameters=_first_hyperparameters(name, profile) | chosen,
        reasons=(),
    )
    return _Candidate(advice, profile.image_passes[name])


def _best_variant(name: str, profile: Profile, priors: Priors) -> tuple[Variant, Gain]:
    """Return the variant with the highest predicted gain; the first one of equals."""
    candidates = [
        (v, predict_gain(v, profile, priors)) for v in priors.variants if v.strategy == name
    ]
    return max(candidates, key=lambda pair: pair[1].mean)


def _first_hyperparameters(name: str, profile: Profile) -> dict[str, Any]:
    """Return the hyperparameters that a search starts from, except those of the priors."""
    if name in MEASURED:
        common: dict[str, Any] = {"class_weight": "none", "input_px": profile.input_px}
        if name == "linear_probe":
            return common
        return {"depth": None, "pooling": None} | common  # None: chosen by cross-validation
    chosen = STRATEGIES[name]().hyperparameters() | {"input_px": profile.input_px}
    not_set = {k: v for k, v in profile.fine_tune_defaults.items() if chosen.get(k, v) is None}
    chosen |= not_set
    steps = default_steps(profile.n_train, BATCH_SIZE)
    chosen["steps"] = 2 * steps if name == "from_scratch" else steps
    if name == "partial_fine_tune":
        chosen["frozen_stages"] = len(profile.depth_names) // 2
    return chosen
