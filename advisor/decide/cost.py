"""Predict how many seconds the first fit of a strategy takes on this machine."""

import math

from advisor.decide.candidates import Candidate
from advisor.decide.gain_model import Z
from advisor.decide.priors import Offset, Priors
from advisor.types.profile import Profile
from strategies.core.metrics import Interval
from strategies.registry import baseline
from strategies.training.lp_ft import PASSES_PER_STEP

UNTIMED_SD = 0.4
"""Standard deviation, in logarithms, added where training was not timed on this machine."""
NO_CASES = Offset(0.0, 0.7, 0)
"""Correction for a strategy without benchmark cases: its seconds may be off by a factor of two."""


def fit_seconds(candidate: Candidate, profile: Profile, priors: Priors) -> Interval:
    """Predict the seconds of a strategy's first fit on this machine, with an empty cache.

    This is `raw_seconds` times the correction that such predictions needed in the benchmarks.
    """
    cost = priors.cost.get(candidate.name, NO_CASES)
    is_trained = candidate.strategy.trains_network
    untimed = is_trained and profile.passes_per_trained_image is None
    spread = math.exp(Z * math.hypot(cost.sd, UNTIMED_SD if untimed else 0.0))
    octaves = math.log2(profile.input_px / (candidate.input_px or profile.input_px))
    correction = cost.offset + cost.per_octave * octaves
    seconds = raw_seconds(candidate, profile) * math.exp(correction)
    return Interval(seconds / spread, seconds, seconds * spread)


def raw_seconds(candidate: Candidate, profile: Profile) -> float:
    """Predict the seconds from measured rates alone.

    Strategies count their cost in forward passes, with `PASSES_PER_STEP` passes for each training
    image. The ratio measured on this machine replaces that constant where it is known.
    """
    loss = candidate.strategy.head_loss or baseline().head_loss
    head_s = 1.0 if loss is None else profile.head_s.get(loss, 1.0)
    passes_s = candidate.image_passes * profile.ms_per_image / 1000
    measured, ratio = profile.passes_per_trained_image, 1.0
    if candidate.strategy.trains_network and measured is not None:
        ratio = measured / PASSES_PER_STEP
    return profile.build_s + head_s + passes_s * ratio


def first_baseline_s(profile: Profile) -> float:
    """Predict the seconds of the baseline's first trial in a run that has just measured.

    It computes the features of the images that were not measured, and fits its head twice: without
    the validation images and with them.
    """
    loss = baseline().head_loss
    head_s = 1.0 if loss is None else profile.head_s.get(loss, 1.0)
    return (profile.n - profile.n_measured) * profile.ms_per_image / 1000 + 2 * head_s
