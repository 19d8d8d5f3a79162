"""Priors fitted to the benchmark results: data types, and loading of the files in ``fitted/``.

``fitted/common.json`` holds what all strategies share; every strategy with benchmark cases has a
file of its own. `benchmarks/fit_priors.py` writes them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from strategies.base import Strategy

SPREAD_KINDS = ("heads", "training_runs", "controls")
"""Kinds of strategies whose intervals have widths of their own (`spread_kind`)."""


def spread_kind(strategy: Strategy | type[Strategy]) -> str:
    """Return which of `SPREAD_KINDS` a strategy is.

    Heads on pretrained features are measured, which leaves the smallest errors. Controls use no
    pretrained weights, so the measured probe says least about them.
    """
    if strategy.head_loss is not None:
        return "heads"
    return "controls" if strategy.role == "control" else "training_runs"


@dataclass(frozen=True)
class Prior:
    """Normal prior: mean and standard deviation over the benchmarks, measurement noise removed."""

    mean: float
    sd: float


@dataclass(frozen=True)
class GainModel:
    """Linear model of a strategy's gain over the expected accuracy of a linear probe.

    The gain is in log-odds of accuracy: `intercept` where all evidence equals its prior mean, plus
    `weights` times the evidence's distance from that mean in standard deviations.

    Attributes
    ----------
    sd
        Standard deviation of a new dataset's gain around the prediction, without the errors of
        the probe and of the test split.
    drift
        Standard deviation of the change of the gain with ten times the images.
    fit_error, left_out_error
        Root mean square error of the linear model on the cases it was fitted to, and on the cases
        of a dataset that was left out of the fit.
    cases
        Number of measured cases.
    """

    strategy: str
    intercept: float
    weights: Mapping[str, float]
    sd: float
    drift: float
    fit_error: float
    left_out_error: float
    cases: int


@dataclass(frozen=True)
class Offset:
    """A correction to add to the logarithm of predicted seconds, with its residual error.

    Attributes
    ----------
    sd
        Standard deviation of the error that remains after the correction.
    cases
        Number of measured cases.
    per_octave
        Further correction for every octave by which the fit's inputs are smaller than the
        profile's.
    """

    offset: float
    sd: float
    cases: int
    per_octave: float = 0.0


@dataclass(frozen=True)
class Spread:
    """How wide the intervals of expected accuracies are, as angles: ``arcsin(sqrt(accuracy))``.

    Attributes
    ----------
    model
        Standard deviation of the angle for every log-odds of the predicted gain's.
    measured
        Factor of the standard error of the probe's cross-validated accuracy, ``0.5 / sqrt(n)`` as
        an angle.
    """

    model: float
    measured: float


@dataclass(frozen=True)
class Priors:
    """Gains, costs and measurement errors of the strategies in the benchmarks.

    Attributes
    ----------
    evidence
        Prior of each piece of evidence, in the order of the models' weights.
    spreads
        The width of 90% intervals that hold on left-out datasets, by kind (`SPREAD_KINDS`).
    shared
        Correlation of two strategies' prediction errors on the same case, in [0, 1].
    gains
        Gain model of every strategy with benchmark cases; that of the linear probe predicts its
        test accuracy from the cross-validated one.
    cost
        By strategy: correction of the logarithm of a fit's seconds, as predicted from measured
        rates.
    """

    evidence: Mapping[str, Prior]
    spreads: Mapping[str, Spread]
    shared: float
    gains: Mapping[str, GainModel]
    cost: Mapping[str, Offset]

    def cases(self, strategy: str) -> int:
        """Return the number of benchmark cases of a strategy."""
        return self.gains[strategy].cases if strategy in self.gains else 0

    def spread(self, strategy: Strategy | type[Strategy]) -> Spread:
        """Return the spread of the strategies of a strategy's kind."""
        return self.spreads[spread_kind(strategy)]


def priors_from_record(record: Mapping[str, Any]) -> Priors:
    """Build priors from parsed JSON: ``{"common": ..., "strategies": {name: ...}}``."""
    common, strategies = record["common"], record["strategies"]
    return Priors(
        evidence={name: Prior(**v) for name, v in common["evidence"].items()},
        spreads={kind: Spread(**v) for kind, v in common["spreads"].items()},
        shared=common["shared"],
        gains={name: GainModel(name, **v["gain"]) for name, v in strategies.items()},
        cost={name: Offset(**v["cost"]) for name, v in strategies.items()},
    )


@cache
def load_priors() -> Priors:
    """Load the priors that are shipped with the program."""
    folder = files("advisor.decide") / "fitted"
    known = {f.name: json.loads(f.read_text(encoding="utf-8")) for f in folder.iterdir()}
    common = known.pop("common.json")
    return priors_from_record(
        {
            "common": common,
            "strategies": {n.removesuffix(".json"): v for n, v in sorted(known.items())},
        }
    )
