"""Whether a pilot earns its time: what it costs, and the accuracy gained by deciding after it.

The gain is the expected value of sample information (H. Raiffa, R. Schlaifer, Applied statistical
decision theory, 1961): the mean, over the outcomes of the pilot, of the best strategy's expected
accuracy after it, minus the best strategy's expected accuracy now. Only accuracy counts: a cheaper
strategy that is about as accurate is found without a pilot.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtri

from advisor.decide.candidates import DecisionInputs
from advisor.decide.gain_model import (
    Gain,
    LogOdds,
    evidence_of,
    gain_model,
    measured_probe,
    predict_gain,
    reliability,
)
from advisor.decide.priors import Priors
from advisor.measure.pilot import FEWEST, MAX_EVALUATED, pilot_passes, pilot_seconds
from advisor.types.advice import Decision, Recommendation
from advisor.types.options import PilotMode
from strategies.registry import get_strategy
from strategies.training.lp_ft import PASSES_PER_STEP

MIN_VALUE = 0.003
"""An "auto" pilot is run if deciding after it gains at least this much accuracy on average."""
COST_SHARE = 0.25
"""An "auto" pilot may cost at most this share of the recommended fit."""
NOISE_SHARE = 0.45
"""Noise of a pilot's gain, as a share of the standard error of an accuracy on as many images.

It is below 1 because both classifiers see the same images, and because log-losses are less noisy
than accuracies. The median over the 111 pilots of benchmarks/evidence.jsonl.
"""
REALISED = 0.1
"""Share of the computed value that pilots really gained on left-out datasets (111 cases with a
pilot, `benchmarks/regret.py`): 0.09 [-0.03, 0.27] with earlier gain models; with today's, pilots
lost 0.1 points where 0.6 were computed. A pilot mostly raises the prediction of a strategy that
leads already, which changes no decision."""
_OUTCOMES = ndtri((np.arange(101) + 0.5) / 101)
"""Equally likely outcomes of a measurement, as values of a standard normal variable."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(25)
"""Gauss-Hermite quadrature over a standard normal variable."""


@dataclass(frozen=True)
class Forecast:
    """A strategy's expected accuracy, and how far the outcome of a pilot may move it.

    Attributes
    ----------
    now
        Expected accuracy without a pilot.
    shift
        Standard deviation, in log-odds, of the change of the mean with the outcome of the
        fine-tuning. 0: it tells nothing about this strategy.
    own_shift
        The same for what the pilot measures besides, independently: the gain of the SVM.
    """

    now: LogOdds
    shift: float
    own_shift: float = 0.0


def value_of_information(forecasts: Sequence[Forecast]) -> float:
    """Return the accuracy gained on average by choosing after the pilot, in [0, 1].

    All forecasts move together with the outcome of the fine-tuning. The mean accuracy of log-odds
    that are uncertain is taken by quadrature.
    """
    after = np.array([_accuracy_after(f) for f in forecasts])
    gained = after.max(axis=0).mean() - after.mean(axis=(1, 2)).max()
    return max(float(gained), 0.0)


def _accuracy_after(forecast: Forecast) -> np.ndarray:
    """Return the expected accuracy after every outcome, (outcomes, own outcomes)."""
    now = forecast.now
    remaining = math.sqrt(max(now.sd**2 - forecast.shift**2 - forecast.own_shift**2, 0.0))
    means = now.mean + forecast.shift * _OUTCOMES[:, None] + forecast.own_shift * _OUTCOMES
    mean: np.ndarray = expit(means[..., None] + remaining * _NODES) @ _WEIGHTS / _WEIGHTS.sum()
    return mean


def pilot_value(inputs: DecisionInputs, priors: Priors) -> float:
    """Return the accuracy that a pilot gains on average by a better decision, in [0, 1].

    This is the value of information, scaled to what pilots gained on left-out datasets.
    """
    return REALISED * value_of_information(forecasts_of(inputs, priors))


def forecasts_of(inputs: DecisionInputs, priors: Priors) -> tuple[Forecast, ...]:
    """Return the forecasts of the strategies with benchmark cases, without the controls.

    A control is advised only if it is better with near certainty, so its lead is worth nothing.
    """
    base = measured_probe(inputs.profile, priors)
    gains = _gains(inputs, priors)
    told = _told_by_pilot(inputs, gains, base, priors)
    trained = [told[n] / gains[n].sd for n in told if get_strategy(n).trains_network]
    most = max(trained, default=0.0)
    return tuple(
        Forecast(base.plus(gain), *_shifts(name, gain, told, most, priors))
        for name, gain in gains.items()
    )


def _gains(inputs: DecisionInputs, priors: Priors) -> dict[str, Gain]:
    """Return the predicted gains over the baseline, by strategy."""
    evidence = evidence_of(inputs.profile)
    models = {
        c.name: gain_model(c.strategy, inputs.profile, priors)
        for c in inputs.applicable
        if c.strategy.role != "control"
    }
    return {
        name: predict_gain(model, evidence, None, priors)
        for name, model in models.items()
        if model.cases
    }


def _told_by_pilot(
    inputs: DecisionInputs, gains: Mapping[str, Gain], base: LogOdds, priors: Priors
) -> dict[str, float]:
    """Return the standard deviations of the shifts of the strategies that a pilot corrects.

    They follow from the errors of predictions without and with a pilot: by the law of total
    variance, the mean's variance over the outcomes is what the pilot removes from the variance.
    """
    n = min(inputs.profile.n // 2, MAX_EVALUATED)
    told = {}
    for name in [name for name in gains if name in priors.pilot]:
        trust, gain = priors.pilot[name], gains[name]
        accuracy = base.plus(gain).accuracy().mid
        noise = NOISE_SHARE / math.sqrt(n * accuracy * (1 - accuracy))
        removed = reliability(noise, trust.spread) * (gain.sd**2 - trust.sd**2)
        told[name] = math.sqrt(max(removed, 0.0))
    return told


def _shifts(
    name: str, gain: Gain, told: Mapping[str, float], most: float, priors: Priors
) -> tuple[float, float]:
    """Return the standard deviations of a strategy's shift and of its own shift.

    Training runs share the outcome of the fine-tuning. The errors of all predictions are
    correlated, so this outcome tells something about the other strategies too, which makes a pilot
    worth less.

    Parameters
    ----------
    most
        The largest shift of a training run, as a share of its standard deviation.
    """
    if get_strategy(name).role == "baseline":
        return 0.0, 0.0
    if name not in told:
        return priors.shared * gain.sd * most, 0.0
    if get_strategy(name).trains_network:
        return told[name], 0.0
    return priors.shared * told[name], math.sqrt(1 - priors.shared**2) * told[name]


def is_worth_its_time(fit: Recommendation, inputs: DecisionInputs, priors: Priors) -> bool:
    """Return whether a pilot gains `MIN_VALUE`, and costs at most `COST_SHARE` of a fit."""
    is_cheap = _relative_cost(fit, inputs) <= COST_SHARE and inputs.profile.n >= FEWEST
    return is_cheap and pilot_value(inputs, priors) >= MIN_VALUE


def _relative_cost(fit: Recommendation, inputs: DecisionInputs) -> float:
    """Return the forward passes of a pilot divided by those of a fit."""
    return pilot_passes(inputs.profile, PASSES_PER_STEP) / max(fit.image_passes, 1e-9)


def piloted(decision: Decision) -> Recommendation | None:
    """Return the strategy that a pilot tries: the one that trains most of the pretrained network.

    That is the costliest one with benchmark cases. None if no such strategy applies.
    """
    trained = [
        r
        for r in decision.recommendations
        if get_strategy(r.strategy).trains_network
        and get_strategy(r.strategy).role == "transfer"
        and r.cases
    ]
    return max(trained, key=lambda r: r.image_passes, default=None)


def reason_against_pilot(
    mode: PilotMode,
    decision: Decision,
    inputs: DecisionInputs,
    priors: Priors,
    seconds_left: float,
    forced: str | None = None,
) -> str | None:
    """Return why no pilot is run, as text for the user, or None if one is run.

    An "auto" pilot is run if it gains at least `MIN_VALUE` and costs at most `COST_SHARE` of the
    recommended fit. Both are counted without a clock, and the text names no seconds, so that the
    advice is the same on a busy machine. With a deadline, the pilot and the recommended fit must
    fit before it.

    Parameters
    ----------
    seconds_left
        Time until the deadline; infinite without one.
    forced
        Name of the strategy that the user asked for, if any: a pilot would not change it.
    """
    if mode == "off":
        return "disabled (--pilot off)"
    if piloted(decision) is None:
        return "no strategy that trains the network applies to this dataset and backbone"
    if inputs.profile.n < FEWEST:
        return f"with fewer than {FEWEST} images, its result would be too uncertain"
    if mode == "on":
        return None
    if forced is not None:
        return "it would not change the strategy that you asked for (--strategy)"
    fit = decision.recommendations[0]
    if not is_worth_its_time(fit, inputs, priors):
        cost, value = _relative_cost(fit, inputs), pilot_value(inputs, priors)
        return (
            f"it would take {cost:.1f} times as long as the recommended fit and gain about "
            f"{100 * value:.1f} points by deciding better; run it with --pilot on"
        )
    if pilot_seconds(inputs.profile) + fit.seconds.mid > seconds_left:
        return "it and the recommended fit would exceed the time left; run it with --pilot on"
    return None
