"""Predict a strategy's gain over a linear probe from the evidence and the priors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, logit, ndtri

from advisor.decide.priors import GainModel, Prior, Priors, Spread
from advisor.measure.learning_curve import extrapolate
from advisor.types.profile import Profile
from strategies.base import PublishedGain, Strategy
from strategies.core.metrics import LEVEL, Interval

Z = float(ndtri(0.5 + LEVEL / 2))
Number = TypeVar("Number", float, NDArray[np.float64])
_LOG_ODDS_GRID = np.linspace(-12, 12, 4801)
_MAX_TRIALS = 100_000
"""More binomial trials than this change nothing; the grid is fine enough for this many."""


@dataclass(frozen=True)
class Gain:
    """A predicted gain in log-odds, with its standard deviation."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Evidence:
    """A measured value and the standard deviation of its error."""

    value: float
    noise: float

    def standardised(self, prior: Prior) -> tuple[float, float]:
        """Return the posterior mean as a z-score under the prior, and the value's reliability.

        The noisier the value, the more it is shrunk to the prior mean: this is the posterior mean
        of a normal quantity with a normal prior. The reliability is in [0, 1], see `reliability`.
        """
        share = reliability(self.noise, prior.sd)
        return share * (self.value - prior.mean) / prior.sd, share


REFERENCE_PX = 224
UNKNOWN = Evidence(0.0, math.inf)
"""Evidence that was not measured: it counts as the prior mean, with reliability 0."""


def evidence_of(profile: Profile, input_px: int | None = None) -> Mapping[str, Evidence]:
    """Return the predictors of the gain models; `UNKNOWN` where one was not measured.

    ==========  ==============================================================================
    far         1 - domain similarity
    probe       log-odds of the linear probe's accuracy: how much is left to gain
    svm         log of the probe's log-loss over the best depth's: above 0 if the last features
                are too specialised
    size        log10 of images per class: how much data fine-tuning has
    total       log10 of all images
    classes     logarithm of the number of classes minus one: how low chance is
    pixels      log-odds gained by a linear classifier on grey thumbnails over the probe
    neighbours  log-odds gained by nearest neighbours over the probe
    px          octaves from 224 pixels to the input size of the fit
    lost        octaves of the images' resolution that a fit on smaller inputs than the profile's
                does not see; 0 where the images themselves are smaller
    lost_near   `lost` times the domain similarity: near ImageNet, features of the full size are
                good, and smaller inputs lose more than training repairs
    ==========  ==============================================================================

    Parameters
    ----------
    input_px
        Input size of the fit; None: that of the profile.
    """
    n, px = profile.n_measured, input_px or profile.input_px
    similarity, side = profile.similarity.score, profile.median_side_px
    probe, svm = profile.linear_probe.accuracy, profile.best_svm
    lost = math.log2(min(profile.input_px, side) / min(px, side))
    return {
        "far": Evidence(1 - similarity.mid, _sd(similarity)),
        "probe": Evidence(log_odds(probe.mid, n), _sd(probe) / _logit_slope(probe.mid, n)),
        "svm": Evidence(svm.loss_gain.mid, _sd(svm.loss_gain)),
        "size": Evidence(math.log10(profile.n_per_class), 0.0),
        "total": Evidence(math.log10(profile.n), 0.0),
        "classes": Evidence(math.log(max(profile.n_classes - 1, 1)), 0.0),
        "pixels": _lead_over_probe(profile.pixel_probe, probe, n),
        "neighbours": _lead_over_probe(profile.knn, probe, n),
        "px": Evidence(math.log2(px / REFERENCE_PX), 0.0),
        "lost": Evidence(lost, 0.0),
        "lost_near": Evidence(lost * similarity.mid, 0.0),
    }


def _lead_over_probe(own: Interval | None, probe: Interval, n: int) -> Evidence:
    """Return an accuracy's lead over the probe's in log-odds, treating errors as independent."""
    if own is None:
        return UNKNOWN
    noise = [_sd(a) / _logit_slope(a.mid, n) for a in (own, probe)]
    return Evidence(log_odds(own.mid, n) - log_odds(probe.mid, n), math.hypot(*noise))


def _sd(measured: Interval) -> float:
    """Return the standard deviation of a normal interval."""
    return (measured.high - measured.low) / (2 * Z)


def _logit_slope(accuracy: float, n: int) -> float:
    """Return the derivative of accuracy by its log-odds, for an accuracy on `n` images."""
    inside = min(max(accuracy, 0.5 / n), 1 - 0.5 / n)
    return inside * (1 - inside)


_SCALES = ("size", "total", "px", "lost", "lost_near")
"""Evidence by which a published gain changes as on the networks of the benchmarks."""


def published_gain(strategy: Strategy | type[Strategy], profile: Profile) -> PublishedGain | None:
    """Return the published gain that counts for the profile's network; None if there is none."""
    return strategy.transformer_gain if profile.family == "transformer" else None


def gain_model(strategy: Strategy, profile: Profile, priors: Priors) -> GainModel:
    """Return the model of a strategy's gain over the linear probe.

    On a transformer it is the published gain where there is one. That holds for 224 pixels and for
    the number of images of the publication; for others it changes as on the networks of the
    benchmarks. Otherwise it is the model of the benchmarks, or the wide `Strategy.fallback_gain`
    without cases.
    """
    known, published = priors.gains.get(strategy.name), published_gain(strategy, profile)
    if published is None:
        wide = strategy.fallback_gain
        return known or GainModel(strategy.name, wide.mean, {}, wide.sd, 0.0, 0.0, 0.0, 0)
    weights = {n: known.weights.get(n, 0.0) for n in _SCALES} if known else {}
    there = dict.fromkeys(_SCALES, 0.0)
    there["total"] = math.log10(published.n_images)
    there["size"] = math.log10(published.n_images / profile.n_classes)
    known_there = sum(
        weight * Evidence(there[name], 0.0).standardised(priors.evidence[name])[0]
        for name, weight in weights.items()
    )
    return GainModel(
        strategy.name,
        published.mean - known_there,
        weights,
        published.sd,
        known.drift if known else 0.0,
        published.sd,
        published.sd,
        published.n_datasets,
    )


def predict_gain(model: GainModel, evidence: Mapping[str, Evidence], priors: Priors) -> Gain:
    """Predict a strategy's gain by its linear model.

    Evidence that was not measured widens the prediction; the noise of measured evidence is part
    of the model's own error.
    """
    mean, variance = model.intercept, model.sd**2
    for name, weight in model.weights.items():
        distance, share = evidence[name].standardised(priors.evidence[name])
        mean += weight * distance
        variance += 0.0 if share else weight**2
    return Gain(mean, math.sqrt(variance))


def with_more_images(
    evidence: Mapping[str, Evidence], profile: Profile, factor: float
) -> Mapping[str, Evidence]:
    """Return the evidence expected with `factor` times the images.

    The probe's accuracy follows its learning curve if there is one. All evidence but this and the
    sizes stays the same.
    """
    if factor == 1:
        return evidence
    more, n = math.log10(factor), profile.n_measured
    sizes = {k: Evidence(evidence[k].value + more, 0.0) for k in ("size", "total")}
    if profile.curve is None:
        return {**evidence, **sizes}
    then = extrapolate(profile.curve.measured, factor * profile.curve.measured[-1][0])
    probe = Evidence(log_odds(then.mid, n), _sd(then) / _logit_slope(then.mid, n))
    return {**evidence, **sizes, "probe": probe}


def reliability(noise: float, spread: float) -> float:
    """Return the share of a noisy value's variance that is signal, in [0, 1].

    Parameters
    ----------
    noise, spread
        Standard deviations of the measurement error and of the true values.
    """
    return spread**2 / (spread**2 + noise**2)


@dataclass(frozen=True)
class LogOdds:
    """An expected accuracy: mean and standard deviation of its log-odds."""

    mean: float
    sd: float

    def accuracy(self) -> Interval:
        """Return the accuracy with its interval."""
        half = Z * self.sd
        return Interval(
            *(float(expit(x)) for x in (self.mean - half, self.mean, self.mean + half))
        )


def expected_accuracy(base: LogOdds, gain: Gain, n: int, spread: Spread) -> Interval:
    """Return the accuracy after a gain over the measured probe, with its interval.

    The interval is symmetrical as an angle. Errors of left-out datasets are about as large at all
    accuracies there, while in log-odds those near 1 are several times larger than the others.

    Parameters
    ----------
    base
        The measured probe (`measured_probe`).
    n
        Number of images that it was measured on.
    """
    mid = float(expit(base.mean + gain.mean))
    half = Z * math.hypot(spread.model * gain.sd, spread.measured * 0.5 / math.sqrt(n))
    low, high = (float(accuracy_of(angle_of(mid) + side)) for side in (-half, half))
    return Interval(min(low, mid), mid, max(high, mid))  # rounding, where both parts are 0


def angle_of(accuracy: Number) -> Number:
    """Return ``arcsin(sqrt(accuracy))``, in [0, pi/2].

    On this scale the standard deviation of a share of n images is ``0.5 / sqrt(n)`` whatever the
    share (F. Anscombe, The transformation of Poisson, binomial and negative-binomial data, 1948).
    """
    angle: Number = np.arcsin(np.sqrt(accuracy))
    return angle


def accuracy_of(angle: Number) -> Number:
    """Return the accuracy of an angle; angles outside [0, pi/2] count as the nearest in it."""
    accuracy: Number = np.sin(np.clip(angle, 0, np.pi / 2)) ** 2
    return accuracy


def measured_probe(profile: Profile, priors: Priors) -> LogOdds:
    """Return the linear probe's cross-validated accuracy, shrunk to the prior.

    All gains are relative to it, also that of the linear probe itself.
    """
    accuracy = profile.linear_probe.accuracy.mid
    return shrunk_to_prior(accuracy, profile.n_measured, priors.evidence["probe"])


def shrunk_to_prior(share: float, n: int, prior: Prior) -> LogOdds:
    """Return the posterior of a success probability after `n` trials, as log-odds.

    The posterior of a binomial share under a normal prior on the log-odds, by quadrature. Ten
    images that were all classified correctly do not make an accuracy of 100% certain.
    """
    x = _LOG_ODDS_GRID
    log_likelihood = min(n, _MAX_TRIALS) * (share * log_expit(x) + (1 - share) * log_expit(-x))
    log_weight = log_likelihood - ((x - prior.mean) / prior.sd) ** 2 / 2
    weight = np.exp(log_weight - log_weight.max())
    mean = float(np.average(x, weights=weight))
    return LogOdds(mean, math.sqrt(float(np.average((x - mean) ** 2, weights=weight))))


def prior_of(accuracy: Interval) -> Prior:
    """Return an expected accuracy with its interval as a normal prior on the log-odds.

    Its width comes from the lower end: the upper one may be cut off at 1.
    """
    mid = min(max(accuracy.mid, 0.5 / _MAX_TRIALS), 1 - 0.5 / _MAX_TRIALS)
    sd = float(angle_of(mid) - angle_of(accuracy.low)) / Z
    return Prior(float(logit(mid)), max(2 * sd / math.sqrt(mid * (1 - mid)), 1e-3))


def log_odds(share: float, n: float) -> float:
    """Return the log-odds of a share of `n` images, kept half an image away from 0 and 1."""
    return float(logit(min(max(share, 0.5 / n), 1 - 0.5 / n)))
