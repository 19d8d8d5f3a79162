"""The chance of negative transfer, strategy by strategy: pure, from a profile and the priors."""

import math
from dataclasses import replace

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from advisor.decide.gain_model import (
    Gain,
    Z,
    evidence_of,
    expected_probe_accuracy,
    gain_by,
    with_more_images,
)
from advisor.decide.priors import Prior, Priors
from advisor.types.advice import FARTHEST, TransferRisk
from advisor.types.profile import ProbeResult, Profile
from strategies.core.metrics import Interval

SCRATCH = "from_scratch"
FEWEST = 4
"""With fewer cases of training from scratch in the benchmarks, its chance would be a guess."""
CLEAR = 0.02
"""A difference in accuracy that is worth a remark, where it is more than chance."""
PROBES = ("linear_probe", "layer_svm")
HOPELESS = 0.25
"""A probe says nothing if it surely gets less than this share of what guessing leaves."""
POINTS = 41
"""Sizes at which it is looked whether training from scratch has caught up."""
_NORMAL = norm.ppf((np.arange(15) + 0.5) / 15)
"""A standard normal value, as equally likely ones."""


def transfer_risks(profile: Profile, priors: Priors) -> tuple[TransferRisk, ...]:
    """Return, for every strategy that transfers, the chance that training from scratch beats it.

    Both are predicted as log-odds gained over the linear probe (`advisor.decide.gain_model`). Part
    of their errors is shared. Empty where too little is known of training from scratch, or it
    does not apply.
    """
    known = sum(v.cases for v in priors.variants if v.strategy == SCRATCH)
    scratch = _gain(SCRATCH, profile, priors)
    if scratch is None or SCRATCH in profile.inapplicable or known < FEWEST:
        return ()
    risks = []
    for name in (*PROBES, "partial_fine_tune", "full_fine_tune"):
        own = _gain(name, profile, priors)
        if own is not None and name not in profile.inapplicable:
            risks.append(_risk(name, own, scratch, profile, priors))
    return tuple(risks)


def risk_of_harm(gain: Interval, prior: Prior) -> float:
    """Return the probability that pretrained features do worse than random ones, in [0, 1].

    What was measured is weighed against what is usual, so that a few images raise no alarm.

    Parameters
    ----------
    gain
        Of pretrained over random features, with its normal interval.
    """
    variance = max((gain.high - gain.low) / (2 * Z), 1e-6) ** 2
    share = prior.sd**2 / (prior.sd**2 + variance)
    mean = prior.mean + share * (gain.mid - prior.mean)
    return float(norm.sf(mean / (variance * share) ** 0.5))


def is_at_chance(profile: Profile) -> bool:
    """Whether a linear probe is no better than always naming the largest class."""
    accuracy, majority = profile.linear_probe.accuracy, profile.majority_share
    most = majority + HOPELESS * (1 - majority)
    return accuracy.low <= majority and accuracy.high <= most


def better_depth(profile: Profile) -> tuple[ProbeResult, ProbeResult] | None:
    """Return the SVMs of an earlier depth and of the last, if that earlier one is clearly better.

    Then the late features are too special. By more than chance and by more than `CLEAR`, both
    compared with the same probe.
    """
    svms = [p for p in profile.probes if p.loss == "squared_hinge" and p.depth > 0]
    if not svms:
        return None
    best, last = max(svms, key=lambda p: p.accuracy.mid), max(svms, key=lambda p: p.depth)
    gap = best.gain_over_penultimate.mid - last.gain_over_penultimate.mid
    sure = best.gain_over_penultimate.low > last.gain_over_penultimate.mid
    return (best, last) if sure and gap > CLEAR else None


def break_even_n_per_class(name: str, profile: Profile, priors: Priors) -> Interval | None:
    """Return from how many images per class on training from scratch does as well.

    What both gain is predicted for ever more images (`gain.with_more_images`): the median, and
    where the chance that scratch has caught up passes 5 and 95%. None where it has caught up
    already, or is not expected to within `FARTHEST`.
    """
    most = FARTHEST / profile.n_per_class
    if most <= 1:
        return None
    factors = np.geomspace(1, most, POINTS)
    chances = np.maximum.accumulate([chance_with_more(f, name, profile, priors) for f in factors])
    if not chances[0] < 0.5 <= chances[-1]:
        return None
    at = [min(int(np.searchsorted(chances, c)), POINTS - 1) for c in (0.05, 0.5, 0.95)]
    return Interval(*(float(f"{profile.n_per_class * factors[i]:.2g}") for i in at))


def chance_with_more(factor: float, name: str, profile: Profile, priors: Priors) -> float:
    """Return the chance that scratch does better with so many times the images."""
    own, scratch = (_gain(s, profile, priors, factor) for s in (name, SCRATCH))
    assert own is not None
    assert scratch is not None
    return _chance(own, scratch, priors.shared)


def _chance(own: Gain, scratch: Gain, shared: float) -> float:
    sd = math.sqrt(own.sd**2 + scratch.sd**2 - 2 * shared * own.sd * scratch.sd)
    return float(norm.sf((own.mean - scratch.mean) / max(sd, 1e-6)))


def _gain(name: str, profile: Profile, priors: Priors, factor: float = 1.0) -> Gain | None:
    """Return what a strategy gains over the linear probe; None where nothing is known of it."""
    if name == "linear_probe":
        return Gain(0.0, 0.0, 0.0)
    evidence = with_more_images(evidence_of(profile), profile, factor)
    tried = [
        (gain_by(v, evidence, profile.pilot, priors), v.drift * math.log10(factor))
        for v in priors.variants
        if v.strategy == name
    ]
    if not tried:
        return None
    best, drift = max(tried, key=lambda pair: pair[0].mean)
    return replace(best, sd=math.hypot(best.sd, drift))


def _risk(name: str, own: Gain, scratch: Gain, profile: Profile, priors: Priors) -> TransferRisk:
    """Compare a strategy with training from scratch; the gain is one of accuracy.

    What a difference of log-odds is worth in accuracy depends on where it lies, and that is known
    only as far as the linear probe's accuracy is. Hence quantiles over all errors together.
    """
    shared, base = priors.shared, expected_probe_accuracy(profile, priors)
    at, of_own, rest = np.meshgrid(_NORMAL, _NORMAL, _NORMAL)
    centre = base.mean + at * base.sd
    reached = own.mean + own.sd * of_own
    without = scratch.mean + scratch.sd * (shared * of_own + math.sqrt(1 - shared**2) * rest)
    ends = np.quantile(expit(centre + reached) - expit(centre + without), [0.05, 0.95])
    middle = float(expit(base.mean + own.mean) - expit(base.mean + scratch.mean))
    interval = Interval(min(float(ends[0]), middle), middle, max(float(ends[1]), middle))
    chance = _chance(own, scratch, shared)
    return TransferRisk(name, chance, interval, break_even_n_per_class(name, profile, priors))
