"""Priors fitted to the benchmark results: data types, and loading of ``priors.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Prior:
    """Normal prior: mean and standard deviation over the benchmarks, measurement noise removed."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Variant:
    """A strategy with fixed hyperparameters, and a linear model of its gain over a linear probe.

    The gain is measured in log-odds of accuracy: `intercept` where all evidence equals its prior
    mean, plus `weights` times the evidence's distance from that mean in standard deviations.

    Attributes
    ----------
    sd
        Standard deviation of a new case's gain around the prediction.
    drift
        Standard deviation of the change of the gain with ten times the images.
    fit_error, left_out_error
        Root mean square error of the linear model on the cases it was fitted to, and on the cases
        of a dataset that was left out of the fit.
    cases
        Number of measured cases.
    """

    strategy: str
    hyperparameters: Mapping[str, Any]
    intercept: float
    weights: Mapping[str, float]
    sd: float
    drift: float
    fit_error: float
    left_out_error: float
    cases: int


@dataclass(frozen=True)
class Offset:
    """A correction to add to a value (log-odds or a logarithm), with its residual error.

    Attributes
    ----------
    sd
        Standard deviation of the error that remains after the correction.
    cases
        Number of measured cases.
    """

    offset: float
    sd: float
    cases: int


@dataclass(frozen=True)
class PilotTrust:
    """Linear model of a strategy's gain, given the pilot's gain and the prediction without it.

    For a pilot without noise the gain is ``offset + line * predicted + pilot * pilot_gain``, in
    log-odds.

    Attributes
    ----------
    sd
        Standard deviation of the model's error on datasets that were left out of the fit.
    spread
        Standard deviation of the gain of noise-free pilots. A pilot whose noise has this size
        gets half the weight.
    cases
        Number of measured cases.
    """

    offset: float
    line: float
    pilot: float
    sd: float
    spread: float
    cases: int


@dataclass(frozen=True)
class Priors:
    """Gains, costs and measurement errors of the strategies in the benchmarks.

    Attributes
    ----------
    provenance
        Rows, datasets, sizes, seeds, input side and date, for people.
    evidence
        Prior of each piece of evidence that the `variants` use.
    measured
        Correction of the linear probe's cross-validated accuracy to its test accuracy.
    shared
        Correlation of two strategies' prediction errors on the same case, in [0, 1].
    pilot
        By trained strategy: how its gain follows from the pilot's.
    cost
        By strategy: correction of the logarithm of a fit's seconds, as predicted from measured
        rates.
    """

    provenance: str
    evidence: Mapping[str, Prior]
    variants: tuple[Variant, ...]
    measured: Offset
    shared: float
    pilot: Mapping[str, PilotTrust]
    cost: Mapping[str, Offset]


def priors_from_record(record: Mapping[str, Any]) -> Priors:
    """Build priors from the parsed JSON of ``priors.json``."""
    return Priors(
        record["provenance"],
        {name: Prior(**v) for name, v in record["evidence"].items()},
        tuple(Variant(**v) for v in record["variants"]),
        Offset(**record["measured"]),
        record["shared"],
        {name: PilotTrust(**v) for name, v in record["pilot"].items()},
        {name: Offset(**v) for name, v in record["cost"].items()},
    )


@cache
def load_priors() -> Priors:
    """Load the priors that are shipped with the program."""
    return priors_from_record(
        json.loads(files("advisor.decide").joinpath("priors.json").read_text(encoding="utf-8"))
    )
