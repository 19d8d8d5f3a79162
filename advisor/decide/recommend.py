"""recommend(): a profile to a decision. Pure: the same profile gives the same advice."""

from dataclasses import dataclass, replace
from typing import Any

from advisor.decide.cost import fit_seconds
from advisor.decide.gain_model import Gain, expected_probe_accuracy, predict_gain
from advisor.decide.negative_transfer import SCRATCH, chance_with_more
from advisor.decide.priors import Priors, Variant
from advisor.decide.quadrant import find_quadrant
from advisor.decide.rationale import MEASURED, rationale_of
from advisor.types.advice import Decision, Quadrant, Recommendation, Rejection
from advisor.types.options import LIKE_COSTS, Prefer, equal_within
from advisor.types.profile import Profile
from strategies.core.errors import NotApplicable
from strategies.registry import STRATEGIES
from strategies.training.recipe import default_steps

BATCH = 32
PROVEN = 0.9
"""Training from scratch is the control: only with this chance of being better is it advised."""


@dataclass(frozen=True)
class _Candidate:
    """A strategy with what is expected of it.

    Attributes
    ----------
    cost
        In forward passes, not in measured seconds, so that the same images get the same advice.
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
        """Position by cost; of equal costs the strategy that is listed first."""
        return self.cost, list(STRATEGIES).index(self.name)


def recommend(
    profile: Profile, priors: Priors, forced: str | None = None, prefer: Prefer = "balanced"
) -> Decision:
    """Rank the strategies for a dataset.

    The linear probe is judged by what was measured, drawn to what is usual as far as that is few
    images' word. What the others would reach is predicted: the
    log-odds that they gained over it in the benchmarks where the evidence was like this (for the
    SVM, the lead that it was measured to have is part of it), and in the pilot where there is one.
    Of those that count as equal to the best the cheapest is taken:

    - ``balanced``: within half a point; among those at like costs the highest prediction;
    - ``cheap``: within three points, both in proportion to the errors where those are rarer than
      one in twenty (`equal_within`);
    - ``accuracy``: none count as equal; the highest prediction wins at any cost.

    Training from scratch is the control: what transfers stands before it, unless it is better with
    a chance of 90%.

    Parameters
    ----------
    forced
        Name of the strategy to put first whatever the evidence.

    Raises
    ------
    NotApplicable
        If the forced strategy does not apply to this dataset.
    """
    if forced is not None and forced in profile.inapplicable:
        raise NotApplicable(f"{forced} does not apply here: {profile.inapplicable[forced]}")
    quadrant = place(profile)
    candidates = [
        _predict(name, profile, priors) for name in STRATEGIES if name not in profile.inapplicable
    ]
    ranked = _behind_transfer(_rank(candidates, quadrant, prefer), profile, priors)
    if forced is not None:
        ranked.sort(key=lambda c: c.name != forced)
    advice = [c.advice for c in ranked]
    reasons = rationale_of(advice, quadrant, profile, prefer, forced)
    rejections = tuple(Rejection(name, reason) for name, reason in profile.inapplicable.items())
    return Decision(
        quadrant, tuple(replace(r, reasons=reasons[r.strategy]) for r in advice), rejections
    )


def place(profile: Profile) -> Quadrant:
    """Place a dataset in one of the four quadrants of size and domain."""
    sizes = list(profile.n_by_class.values())
    return find_quadrant(sizes, profile.feature_width, profile.similarity)


def _rank(candidates: list[_Candidate], quadrant: Quadrant, prefer: Prefer) -> list[_Candidate]:
    """Sort best first; of equals the cheapest, at like costs the better."""
    left = sorted(candidates, key=lambda c: (-c.mid, c.rank))
    if prefer == "accuracy":
        return left
    ranked = []
    while left:
        most = left[0].mid
        equal = [c for c in left if most - c.mid <= equal_within(most, prefer)]
        if prefer == "cheap":
            taken = min(equal, key=lambda c: c.rank)
        else:
            taken = _take_balanced(equal, quadrant)
        left.remove(taken)
        ranked.append(taken)
    return ranked


def _behind_transfer(
    ranked: list[_Candidate], profile: Profile, priors: Priors
) -> list[_Candidate]:
    """Put training from scratch second where its lead is less than proven."""
    first, *others = ranked
    if first.name != SCRATCH or not others:
        return ranked
    best = max(others, key=lambda c: c.mid)
    if chance_with_more(1, best.name, profile, priors) >= PROVEN:
        return ranked
    return [others[0], first, *others[1:]]


def _take_balanced(equal: list[_Candidate], quadrant: Quadrant) -> _Candidate:
    """Take the best of those that cost hardly more than the cheapest; of the same, the rule's."""
    cheapest = min(c.cost for c in equal)
    near = [c for c in equal if c.cost <= LIKE_COSTS * cheapest]
    return max(near, key=lambda c: (c.mid, c.name == quadrant.rule))


def _predict(name: str, profile: Profile, priors: Priors) -> _Candidate:
    odds = expected_probe_accuracy(profile, priors)
    chosen: dict[str, Any] = {}
    if name != "linear_probe":
        variant, gain = _best_variant(name, profile, priors)
        odds = odds.gaining(gain)
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
    """Choose the hyperparameters that promise most; the first of equals."""
    tried = [(v, predict_gain(v, profile, priors)) for v in priors.variants if v.strategy == name]
    return max(tried, key=lambda pair: pair[1].mean)


def _first_hyperparameters(name: str, profile: Profile) -> dict[str, Any]:
    """Choose where a search starts, apart from what the priors say."""
    if name in MEASURED:
        head: dict[str, Any] = {"class_weight": "none", "input_px": profile.input_px}
        cut = {"depth": None, "pooling": None}  # by cross-validation, with views and quarters
        return head if name == "linear_probe" else cut | head
    chosen = STRATEGIES[name]().hyperparameters() | {"input_px": profile.input_px}
    left_open = {k: v for k, v in profile.fine_tune_defaults.items() if chosen.get(k, v) is None}
    chosen |= left_open
    steps = default_steps(profile.n_train, BATCH)
    chosen["steps"] = 2 * steps if name == "from_scratch" else steps
    if name == "partial_fine_tune":
        chosen["frozen_stages"] = len(profile.depth_names) // 2
    return chosen
