"""Which strategy and input size to use within a time: value of a fit that must end in time."""

import math
from collections.abc import Sequence

from scipy.special import ndtr

from advisor.decide.gain_model import Z
from advisor.types.advice import Recommendation
from advisor.types.options import Prefer, tie_tolerance
from strategies.core.metrics import Interval
from strategies.registry import get_strategy

BUDGETS_S = (15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Times for which the report shows the best option."""
LIKELY = 0.5
"""A strategy is offered if it ends in time with at least this probability."""


def probability_in_time(seconds: Interval, time_s: float) -> float:
    """Return the probability that a fit ends in time; its seconds are log-normal."""
    if math.isinf(time_s):
        return 1.0
    if time_s <= 0:
        return 0.0
    sd = math.log(seconds.high / seconds.mid) / Z
    return float(ndtr(math.log(time_s / seconds.mid) / max(sd, 1e-6)))


def ends_in_time(option: Recommendation, time_s: float) -> bool:
    """Return whether a fit is likely (`LIKELY`) to end within a time."""
    return probability_in_time(option.seconds, time_s) >= LIKELY


def value_within(option: Recommendation, time_s: float, fallback: float) -> float:
    """Return the expected accuracy if a fit must end within a time.

    Parameters
    ----------
    fallback
        Accuracy of what one has if the fit does not end in time.
    """
    share = probability_in_time(option.seconds, time_s)
    return share * option.accuracy.mid + (1 - share) * fallback


def fallback_within(options: Sequence[Recommendation], time_s: float) -> float:
    """Return the expected accuracy of the best baseline within a time; 0 if there is none."""
    baselines = [o for o in options if get_strategy(o.strategy).role == "baseline"]
    return max((value_within(o, time_s, 0.0) for o in baselines), default=0.0)


def best_size(
    options: Sequence[Recommendation], time_s: float, fallback: float, prefer: Prefer
) -> Recommendation:
    """Return the option of one strategy with the highest value within a time.

    Options that are likely to end in time go before the others. Among options that count as
    equal, the cheapest is taken if the network is trained. A head is fitted to features, which
    have been extracted at the largest size already.
    """
    options = [o for o in options if ends_in_time(o, time_s)] or options
    best = max(value_within(o, time_s, fallback) for o in options)
    least = best - tie_tolerance(best, prefer)
    equal = [o for o in options if value_within(o, time_s, fallback) >= least]
    if get_strategy(options[0].strategy).trains_network:
        return min(equal, key=lambda o: o.image_passes)
    return max(equal, key=lambda o: o.input_px)
