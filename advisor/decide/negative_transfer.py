"""Predict the probability of negative transfer for each strategy."""

import math
from dataclasses import replace

import numpy as np
from scipy.special import expit, ndtr, ndtri

from advisor.decide.candidates import DecisionInputs
from advisor.decide.chance import lacks_signal
from advisor.decide.gain_model import (
    Gain,
    Z,
    evidence_of,
    gain_model,
    measured_probe,
    predict_gain,
    with_more_images,
)
from advisor.decide.priors import Prior, Priors
from advisor.types.advice import MAX_BREAK_EVEN_N_PER_CLASS, TransferRisk
from advisor.types.profile import ProbeResult, Profile
from strategies.core.metrics import Interval
from strategies.registry import reference_control

MIN_CASES = 4
"""Fewer benchmark cases of training from scratch are too few to predict a probability from."""
CLEAR = 0.02
"""Smallest difference in accuracy that is reported, if it is also statistically significant."""
N_SIZES = 41
"""Number of dataset sizes at which training from scratch is compared with a strategy."""
_NORMAL_QUANTILES = ndtri((np.arange(15) + 0.5) / 15)
"""Equally likely values of a standard normal variable."""


def transfer_risks(inputs: DecisionInputs, priors: Priors) -> tuple[TransferRisk, ...]:
    """Return the probability that training from scratch beats each strategy that transfers.

    The gains of both over the linear probe are predicted in log-odds, with correlated errors (see
    `advisor.decide.gain_model`). Empty if there are too few benchmark cases of training from
    scratch, if it does not apply to the dataset, or if nothing predicts the labels (see
    `lacks_signal`). Strategies without benchmark cases have none.
    """
    if lacks_signal(inputs.profile):
        return ()
    control = reference_control().name
    applicable = [c.strategy for c in inputs.applicable]
    if control not in [s.name for s in applicable] or priors.cases(control) < MIN_CASES:
        return ()
    scratch = _gain(control, inputs, priors)
    assert scratch is not None
    risks = []
    for strategy in applicable:
        own = _gain(strategy.name, inputs, priors)
        if own is not None and strategy.role != "control":
            risks.append(_risk(strategy.name, own, scratch, inputs, priors))
    return tuple(risks)


def risk_of_harm(gain: Interval, prior: Prior) -> float:
    """Return the probability that pretrained features do worse than random ones, in [0, 1].

    The measured gain is shrunk to the prior, so that a few images alone do not report harm.

    Parameters
    ----------
    gain
        Accuracy of pretrained minus that of random features, with its normal interval.
    """
    variance = max((gain.high - gain.low) / (2 * Z), 1e-6) ** 2
    share = prior.sd**2 / (prior.sd**2 + variance)
    mean = prior.mean + share * (gain.mid - prior.mean)
    return float(ndtr(-mean / (variance * share) ** 0.5))


def better_earlier_depth(profile: Profile) -> tuple[ProbeResult, ProbeResult] | None:
    """Return the SVMs of the best and of the last depth if the best one is clearly better.

    Then the late features are too specialised. Clearly better means significantly, and by more
    than `CLEAR`; both SVMs are compared with the same linear probe.
    """
    svms = [p for p in profile.probes if p.loss == "squared_hinge" and p.depth > 0]
    if not svms:
        return None
    best, last = max(svms, key=lambda p: p.accuracy.mid), max(svms, key=lambda p: p.depth)
    gap = best.gain_over_penultimate.mid - last.gain_over_penultimate.mid
    sure = best.gain_over_penultimate.low > last.gain_over_penultimate.mid
    return (best, last) if sure and gap > CLEAR else None


def break_even_n_per_class(name: str, inputs: DecisionInputs, priors: Priors) -> Interval | None:
    """Return the images per class from which on training from scratch does as well.

    Both gains are predicted for growing datasets (`with_more_images`). The interval's middle is
    where the probability that training from scratch is better reaches 50%; its ends are where it
    reaches 5% and 95%. None if it is better already, or is not expected to be up to
    `MAX_BREAK_EVEN_N_PER_CLASS`.
    """
    n_per_class = inputs.profile.n_per_class
    most = MAX_BREAK_EVEN_N_PER_CLASS / n_per_class
    if most <= 1:
        return None
    factors = np.geomspace(1, most, N_SIZES)
    probabilities = np.maximum.accumulate(
        [probability_scratch_wins(f, name, inputs, priors) for f in factors]
    )
    if not probabilities[0] < 0.5 <= probabilities[-1]:
        return None
    rows = [min(int(np.searchsorted(probabilities, p)), N_SIZES - 1) for p in (0.05, 0.5, 0.95)]
    return Interval(*(float(f"{n_per_class * factors[i]:.2g}") for i in rows))


def probability_scratch_wins(
    factor: float, name: str, inputs: DecisionInputs, priors: Priors
) -> float:
    """Return the probability that training from scratch wins with `factor` times the images."""
    names = (name, reference_control().name)
    own, scratch = (_gain(s, inputs, priors, factor) for s in names)
    assert own is not None
    assert scratch is not None
    return _probability_scratch_wins(own, scratch, priors.shared)


def _probability_scratch_wins(own: Gain, scratch: Gain, shared: float) -> float:
    sd = math.sqrt(own.sd**2 + scratch.sd**2 - 2 * shared * own.sd * scratch.sd)
    return float(ndtr((scratch.mean - own.mean) / max(sd, 1e-6)))


def _gain(name: str, inputs: DecisionInputs, priors: Priors, factor: float = 1.0) -> Gain | None:
    """Return a strategy's predicted gain over the linear probe; None without cases."""
    model = gain_model(inputs.candidate(name).strategy, inputs.profile, priors)
    if not model.cases:
        return None
    evidence = with_more_images(evidence_of(inputs.profile), inputs.profile, factor)
    gain = predict_gain(model, evidence, priors)
    return replace(gain, sd=math.hypot(gain.sd, model.drift * math.log10(factor)))


def _risk(
    name: str, own: Gain, scratch: Gain, inputs: DecisionInputs, priors: Priors
) -> TransferRisk:
    """Compare a strategy with training from scratch; the gain is in accuracy, not log-odds.

    What a difference of log-odds is worth in accuracy depends on the linear probe's accuracy,
    which is itself uncertain. The interval is therefore one of quantiles over all errors together.
    """
    shared, base = priors.shared, measured_probe(inputs.profile, priors)
    base_z, own_z, rest_z = np.meshgrid(*[_NORMAL_QUANTILES] * 3)
    centre = base.mean + base_z * base.sd
    reached = own.mean + own.sd * own_z
    without = scratch.mean + scratch.sd * (shared * own_z + math.sqrt(1 - shared**2) * rest_z)
    ends = np.quantile(expit(centre + reached) - expit(centre + without), [0.05, 0.95])
    middle = float(expit(base.mean + own.mean) - expit(base.mean + scratch.mean))
    interval = Interval(min(float(ends[0]), middle), middle, max(float(ends[1]), middle))
    probability = _probability_scratch_wins(own, scratch, shared)
    return TransferRisk(name, probability, interval, break_even_n_per_class(name, inputs, priors))
