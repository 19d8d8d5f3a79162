"""Decide whether any measurement predicts the labels at all, and what to expect if none does."""

import math

from scipy.special import bdtrc

from advisor.decide.candidates import DecisionInputs
from advisor.decide.gain_model import Gain, LogOdds, log_odds, measured_probe
from advisor.decide.priors import Priors
from advisor.types.profile import Profile
from strategies.core.metrics import Interval
from strategies.registry import baseline

AT_CHANCE_SHARE = 0.25
"""A probe is at chance if it surely removes less than this share of the majority class's error."""
SIGNAL_P = 0.01
"""Probability that labels without any signal seem to have one, over all measurements together."""
MAX_SKEW = 0.2
"""Accuracy shows no signal where one class is so frequent that always predicting it is nearly the
best answer. The skew is 0 for equal classes and 1 for a single one; 0.2 is 60% in one of two."""


def is_at_chance(profile: Profile) -> bool:
    """Return whether the linear probe is no better than always predicting the largest class."""
    accuracy = profile.linear_probe.accuracy
    return accuracy.low <= profile.majority_share and _is_bounded(accuracy, profile)


def lacks_signal(profile: Profile) -> bool:
    """Return whether every measurement says that the labels cannot be predicted.

    The measurements are the linear probe, the best SVM over depths, k-NN, the linear classifier on
    thumbnails, and the same network with random weights. Three conditions:

    - no measurement is significantly above chance: the smallest p-value of the exact binomial
      tests, times their number (Bonferroni), is above `SIGNAL_P`;
    - there are enough images to say so: none can remove more than `AT_CHANCE_SHARE` of the
      majority class's error, by the upper end of its interval;
    - the classes are about equally frequent (`MAX_SKEW`), so that accuracy would show a signal.

    None of the 120 cases of the benchmarks meets them: those with enough images are at least four
    standard errors above chance. Shuffled labels meet them (``benchmarks/shuffled_labels.py``).
    """
    chance = profile.majority_share
    uniform = 1 / profile.n_classes
    measured = _measured(profile)
    p_values = [_p_value(accuracy.mid, profile.n_measured, chance) for accuracy in measured]
    return (
        chance - uniform <= MAX_SKEW * (1 - uniform)
        and min(p_values) * len(p_values) > SIGNAL_P
        and all(_is_bounded(accuracy, profile) for accuracy in measured)
    )


def expected_at_chance(inputs: DecisionInputs, priors: Priors, gain: Gain) -> Interval:
    """Return the accuracy to expect of a strategy where the labels have no signal.

    Its middle is chance. Its lower end is that of the linear probe. Its upper end is that of the
    predicted gain's error: a strategy may find what no probe does.

    Parameters
    ----------
    gain
        The strategy's predicted gain over the linear probe.
    """
    profile = inputs.profile
    mean = log_odds(profile.majority_share, profile.n_measured)
    sd = measured_probe(profile, priors).sd
    of_probe = priors.gains[baseline().name].sd if baseline().name in priors.gains else 0.0
    probe = LogOdds(mean, math.hypot(sd, of_probe)).accuracy()
    wide = LogOdds(mean, math.hypot(sd, max(gain.sd, of_probe))).accuracy()
    return Interval(probe.low, probe.mid, wide.high)


def _measured(profile: Profile) -> list[Interval]:
    """Return the measured accuracies."""
    found = [profile.linear_probe.accuracy, profile.best_svm.accuracy]
    found += [a for a in (profile.knn, profile.pixel_probe) if a is not None]
    return found + [p.accuracy for p in profile.random_probes]


def _is_bounded(accuracy: Interval, profile: Profile) -> bool:
    chance = profile.majority_share
    return accuracy.high <= chance + AT_CHANCE_SHARE * (1 - chance)


def _p_value(share: float, n: int, chance: float) -> float:
    """Return the probability of at least this share of `n` images by chance."""
    return float(bdtrc(round(share * n) - 1, n, chance))
