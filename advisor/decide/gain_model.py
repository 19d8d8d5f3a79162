"""What a strategy would gain over a linear probe: evidence times priors, sharpened by a pilot."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit, logit
from scipy.stats import norm

from advisor.decide.priors import Prior, Priors, Variant
from advisor.measure.learning_curve import continued
from advisor.types.profile import LearningCurve, Pilot, Profile
from strategies.core.metrics import LEVEL, Interval

Z = float(norm.ppf(0.5 + LEVEL / 2))
_LOG_ODDS = np.linspace(-12, 12, 4801)
_MOST_SEEN = 100_000
"""So many trials are as good as any more; the grid is fine enough for them."""


@dataclass(frozen=True)
class Gain:
    """A gain in log-odds with its standard deviation; what the priors alone say of it."""

    mean: float
    sd: float
    before_pilot: float


@dataclass(frozen=True)
class Evidence:
    """A measured value and the standard deviation of its error."""

    value: float
    noise: float

    def standardised(self, prior: Prior) -> tuple[float, float]:
        """Return what it probably is, in spreads of what is usual, and the share known of it.

        A noisy value is drawn to the usual one, as far as its noise explains the distance
        (the posterior mean of a normal value that is usual before it was measured).
        """
        share = reliability(self.noise, prior.sd)
        return share * (self.value - prior.mean) / prior.sd, share


UNKNOWN = Evidence(0.0, math.inf)
"""What was not measured: it counts as usual, and nothing is known of it."""


def evidence_of(profile: Profile) -> Mapping[str, Evidence]:
    """Return what gains are predicted from; `UNKNOWN` where it was not measured.

    ==========  ==============================================================================
    far         1 - domain similarity
    probe       log-odds of the linear probe's accuracy: what is left to gain
    svm         log of the probe's log-loss over the best depth's: late features are too special
    size        powers of ten of images per class: what a training can be fed
    total       powers of ten of images in all
    control     accuracy that pretraining gains over random weights, same images
    pixels      log-odds that a linear rule on grey thumbnails gains over the probe
    slope       log-odds that the learning curve promises for twice the images
    ==========  ==============================================================================
    """
    n = profile.n_measured
    similarity, control = profile.similarity, profile.transfer_gain
    probe, svm = profile.linear_probe.accuracy, profile.layer_svm
    return {
        "far": UNKNOWN
        if similarity is None
        else Evidence(1 - similarity.score.mid, _noise(similarity.score)),
        "probe": Evidence(log_odds(probe.mid, n), _noise(probe) / _steepness(probe.mid, n)),
        "svm": Evidence(svm.loss_gain.mid, _noise(svm.loss_gain)),
        "size": Evidence(math.log10(profile.n_per_class), 0.0),
        "total": Evidence(math.log10(profile.n), 0.0),
        "control": UNKNOWN if control is None else Evidence(control.mid, _noise(control)),
        "pixels": _lead(profile.pixel_probe, probe, n),
        "slope": _slope(profile.curve, n),
    }


def _lead(own: Interval | None, probe: Interval, n: int) -> Evidence:
    """Return the lead of an accuracy over the probe's, as if errors were not shared."""
    if own is None:
        return UNKNOWN
    noise = [_noise(a) / _steepness(a.mid, n) for a in (own, probe)]
    return Evidence(log_odds(own.mid, n) - log_odds(probe.mid, n), math.hypot(*noise))


def _slope(curve: LearningCurve | None, n: int) -> Evidence:
    if curve is None or not curve.extrapolated:
        return UNKNOWN
    later, now = curve.extrapolated[0][1], curve.measured[-1][1]
    return Evidence(
        log_odds(later.mid, n) - log_odds(now.mid, n), _noise(later) / _steepness(later.mid, n)
    )


def _noise(measured: Interval) -> float:
    return (measured.high - measured.low) / (2 * Z)


def _steepness(accuracy: float, n: int) -> float:
    """Return the accuracy that one log-odds is worth near an accuracy of `n` images."""
    inside = min(max(accuracy, 0.5 / n), 1 - 0.5 / n)
    return inside * (1 - inside)


def predict_gain(variant: Variant, profile: Profile, priors: Priors) -> Gain:
    """Predict a variant's gain: the priors' line, corrected by a pilot as far as it is exact.

    What is not known of the evidence widens what is left open.
    """
    return gain_by(variant, evidence_of(profile), profile.pilot, priors)


def gain_by(
    variant: Variant, evidence: Mapping[str, Evidence], pilot: Pilot | None, priors: Priors
) -> Gain:
    """Predict a variant's gain where this is the evidence."""
    mean, variance = variant.intercept, variant.sd**2
    for name, weight in variant.weights.items():
        distance, share = evidence[name].standardised(priors.evidence[name])
        mean += weight * distance
        variance += weight**2 * (1 - share)
    return _with_pilot(mean, variance, variant.strategy, pilot, priors)


def with_more_images(
    evidence: Mapping[str, Evidence], profile: Profile, factor: float
) -> Mapping[str, Evidence]:
    """Return what the evidence would be with so many times the images.

    The probe's accuracy follows its learning curve, where there is one; what else is known stays.
    """
    if factor == 1:
        return evidence
    more, n = math.log10(factor), profile.n_measured
    sizes = {k: Evidence(evidence[k].value + more, 0.0) for k in ("size", "total")}
    if profile.curve is None:
        return {**evidence, **sizes}
    then = continued(profile.curve, factor * profile.curve.measured[-1][0])
    probe = Evidence(log_odds(then.mid, n), _noise(then) / _steepness(then.mid, n))
    return {**evidence, **sizes, "probe": probe}


def _with_pilot(
    mean: float, variance: float, strategy: str, pilot: Pilot | None, priors: Priors
) -> Gain:
    if pilot is None or strategy not in priors.pilot:
        return Gain(mean, math.sqrt(variance), mean)
    trust = priors.pilot[strategy]
    gained, noise = pilot_gain(pilot, strategy)
    exact = reliability(noise, trust.spread)
    corrected = trust.offset + trust.line * mean + trust.pilot * gained
    after = mean + exact * (corrected - mean)
    return Gain(after, math.sqrt(exact * trust.sd**2 + (1 - exact) * variance), mean)


def reliability(noise: float, spread: float) -> float:
    """Return the share of a noisy value's variance that is not noise, in [0, 1]."""
    return spread**2 / (spread**2 + noise**2)


def pilot_gain(pilot: Pilot, strategy: str) -> tuple[float, float]:
    """Return the log-odds that a pilot gained over its probe, and their standard deviation.

    The SVM's own for the SVM, the fine-tuning's for all that train. Told by hits, and by the
    log-loss, which falls about as errors do: each counts as far as it is exact. What misleads one
    misleads the other, so both together are not held for more exact than they are on the average.
    """
    reached, hits, losses = pilot.accuracy, pilot.gain, pilot.loss_gain
    if strategy == "layer_svm":
        reached, hits, losses = pilot.svm_accuracy, pilot.svm_gain, pilot.svm_loss_gain
    n = pilot.n_judged
    by_hits = log_odds(reached.mid, n) - log_odds(reached.mid - hits.mid, n)
    told = np.array([by_hits, losses.mid])
    noise = np.array([_noise(hits) / _steepness(reached.mid - hits.mid / 2, n), _noise(losses)])
    exact = 1 / np.maximum(noise, 1e-6) ** 2
    return float(np.average(told, weights=exact)), float(np.average(noise, weights=exact))


@dataclass(frozen=True)
class Odds:
    """An accuracy that is expected, as log-odds with the standard deviation of their error."""

    mean: float
    sd: float

    def gaining(self, gain: Gain) -> "Odds":
        """Return what is expected where so much is gained over this.

        In log-odds the same gain means ever fewer points the nearer an accuracy is to perfect.
        """
        return Odds(self.mean + gain.mean, math.hypot(self.sd, gain.sd))

    @property
    def accuracy(self) -> Interval:
        """The accuracy with its interval."""
        ends = (self.mean - Z * self.sd, self.mean, self.mean + Z * self.sd)
        return Interval(*(float(expit(x)) for x in ends))


def expected_probe_accuracy(profile: Profile, priors: Priors) -> Odds:
    """Expect the linear probe's test accuracy, from what cross-validation said of it."""
    measured, trust = profile.linear_probe.accuracy.mid, priors.measured
    odds = shrunk_to_prior(measured, profile.n_measured, priors.evidence["probe"])
    return Odds(odds.mean + trust.offset, math.hypot(odds.sd, trust.sd))


def shrunk_to_prior(share: float, n: int, prior: Prior) -> Odds:
    """Return what is known of a chance after `n` trials, where its log-odds are usually like that.

    The posterior of a binomial share under a normal prior, by quadrature: ten images that were
    all classified correctly do not make a classifier certain.
    """
    x = _LOG_ODDS
    seen = min(n, _MOST_SEEN) * (share * log_expit(x) + (1 - share) * log_expit(-x))
    log_weight = seen - ((x - prior.mean) / prior.sd) ** 2 / 2
    weight = np.exp(log_weight - log_weight.max())
    mean = float(np.average(x, weights=weight))
    return Odds(mean, math.sqrt(float(np.average((x - mean) ** 2, weights=weight))))


def prior_of(accuracy: Interval) -> Prior:
    """Return log-odds that are as usual as an expected accuracy says."""
    low, mid, high = (log_odds(x, _MOST_SEEN) for x in (accuracy.low, accuracy.mid, accuracy.high))
    return Prior(mid, max((high - low) / (2 * Z), 1e-3))


def log_odds(share: float, n: float) -> float:
    """Return the log-odds of a share of `n` images, half an image away from 0 and 1."""
    return float(logit(min(max(share, 0.5 / n), 1 - 0.5 / n)))
