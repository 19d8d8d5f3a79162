"""Predict how many seconds the first fit of a strategy takes on this machine."""

import math

from advisor.decide.gain_model import Z
from advisor.decide.priors import Priors
from advisor.decide.rationale import MEASURED
from advisor.types.profile import Profile
from strategies.core.metrics import Interval
from strategies.training.lp_ft import PASSES_PER_STEP

UNTIMED_SD = 0.4
"""Standard deviation, in logarithms, added where training was not timed on this machine."""


def fit_seconds(name: str, profile: Profile, priors: Priors) -> Interval:
    """Predict the seconds of a strategy's first fit on this machine, with an empty cache.

    This is `raw_seconds` times the correction that such predictions needed in the benchmarks.
    """
    cost = priors.cost[name]
    untimed = name not in MEASURED and profile.passes_per_trained_image is None
    spread = math.exp(Z * math.hypot(cost.sd, UNTIMED_SD if untimed else 0.0))
    seconds = raw_seconds(name, profile) * math.exp(cost.offset)
    return Interval(seconds / spread, seconds, seconds * spread)


def raw_seconds(name: str, profile: Profile) -> float:
    """Predict the seconds from measured rates alone.

    Strategies count their cost in forward passes, with `PASSES_PER_STEP` passes for each training
    image. The ratio measured on this machine replaces that constant where it is known.
    """
    head = profile.head_s.get("layer_svm" if name == "layer_svm" else "linear_probe", 1.0)
    passes_s = profile.image_passes[name] * profile.ms_per_image / 1000
    measured = profile.passes_per_trained_image
    ratio = 1.0 if name in MEASURED or measured is None else measured / PASSES_PER_STEP
    return profile.build_s + head + passes_s * ratio
