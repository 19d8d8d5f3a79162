"""What training would gain over a linear probe: evidence times priors, sharpened by a pilot."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import expit, logit
from scipy.stats import norm

from advisor.priors import Priors, Variant
from advisor.types import Pilot, Profile
from strategies.core.metrics import LEVEL, Interval

Z = float(norm.ppf(0.5 + LEVEL / 2))


@dataclass(frozen=True)
class Gain:
    """A gain in log-odds with its standard deviation; what the priors alone say of it."""

    mean: float
    sd: float
    before_pilot: float


def evidence_of(profile: Profile) -> Mapping[str, float | None]:
    """Return what the gain of training is predicted from; None where it was not measured.

    ==========  ==============================================================================
    far         1 - domain similarity
    probe       log-odds of the linear probe's accuracy: what is left to gain
    svm         log-odds that the best depth gains over the probe: late features are too special
    size        powers of ten of pictures a class: what a training can be fed
    control     accuracy that pretraining gains over random weights, same pictures
    slope       log-odds that the learning curve promises for twice the pictures
    ==========  ==============================================================================
    """
    n = profile.n_measured
    similarity, curve = profile.similarity, profile.curve
    probe = log_odds(profile.linear_probe.accuracy.mid, n)
    slope = None
    if curve is not None and curve.extrapolated:
        slope = log_odds(curve.extrapolated[0][1].mid, n) - log_odds(curve.measured[-1][1].mid, n)
    return {
        "far": None if similarity is None else 1 - similarity.score.mid,
        "probe": probe,
        "svm": log_odds(profile.layer_svm.accuracy.mid, n) - probe,
        "size": math.log10(profile.n_per_class),
        "control": None if profile.transfer_gain is None else profile.transfer_gain.mid,
        "slope": slope,
    }


def predict_gain(variant: Variant, profile: Profile, priors: Priors) -> Gain:
    """Predict a variant's gain: the priors' line, corrected by a pilot as far as it is exact.

    Evidence that is missing counts as usual, and its usual spread widens what is left open.
    """
    evidence = evidence_of(profile)
    mean, variance = variant.intercept, variant.sd**2
    for name, weight in variant.weights.items():
        value, usual = evidence[name], priors.evidence[name]
        if value is None:
            variance += weight**2
        else:
            mean += weight * (value - usual.mean) / usual.sd
    return _with_pilot(mean, variance, variant.strategy, profile.pilot, priors)


def _with_pilot(
    mean: float, variance: float, strategy: str, pilot: Pilot | None, priors: Priors
) -> Gain:
    if pilot is None or strategy not in priors.pilot:
        return Gain(mean, math.sqrt(variance), mean)
    trust = priors.pilot[strategy]
    gained, noise = pilot_gain(pilot)
    exact = reliability(noise, trust.spread)
    corrected = trust.offset + trust.line * mean + trust.pilot * gained
    after = mean + exact * (corrected - mean)
    return Gain(after, math.sqrt(exact * trust.sd**2 + (1 - exact) * variance), mean)


def svm_lead(profile: Profile, priors: Priors) -> Gain:
    """Return what the SVM gains over the linear probe: as much of what was measured as lasts."""
    measured = evidence_of(profile)["svm"]
    assert measured is not None
    mean = priors.lead.offset + priors.lead.slope * measured
    return Gain(mean, priors.lead.sd, mean)


def reliability(noise: float, spread: float) -> float:
    """Return the share of a noisy value's variance that is not noise, in [0, 1]."""
    return spread**2 / (spread**2 + noise**2)


def pilot_gain(pilot: Pilot) -> tuple[float, float]:
    """Return the log-odds that a pilot gained over its probe, and their standard deviation."""
    tuned = pilot.accuracy.mid
    n = pilot.n_judged
    gain = log_odds(tuned, n) - log_odds(tuned - pilot.gain.mid, n)
    between = min(max(tuned - pilot.gain.mid / 2, 1 / n), 1 - 1 / n)
    sd = (pilot.gain.high - pilot.gain.low) / (2 * Z) / (between * (1 - between))
    return gain, sd


def shifted(accuracy: Interval, gain: float, sd: float, n: int) -> Interval:
    """Move an accuracy by log-odds that are only known with a standard deviation.

    In log-odds the same gain means ever fewer points the nearer an accuracy is to perfect.
    """
    low, mid, high = (log_odds(p, n) for p in (accuracy.low, accuracy.mid, accuracy.high))
    below, above = math.hypot(Z * sd, mid - low), math.hypot(Z * sd, high - mid)
    centre = mid + gain
    middle = float(expit(centre)) if gain else accuracy.mid
    ends = float(expit(centre - below)), float(expit(centre + above))
    return Interval(min(ends[0], middle), middle, max(ends[1], middle))


def log_odds(share: float, n: float) -> float:
    """Return the log-odds of a share of `n` pictures, half a picture away from 0 and 1."""
    return float(logit(min(max(share, 0.5 / n), 1 - 0.5 / n)))
