"""What the benchmarks showed before this dataset was seen, as a few dozen numbers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Prior:
    """What a piece of evidence usually is: mean and spread over the benchmarks, without noise."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Variant:
    """A strategy with its hyperparameters, and what it gained over a linear probe.

    The gain is one of log-odds of accuracy: `intercept` where all evidence is as usual, plus
    `weights` times the evidence's distance from it, in standard deviations.

    Attributes
    ----------
    sd
        Standard deviation of a new case around that.
    drift
        Standard deviation of how the gain changes with ten times the images.
    fit_error, left_out_error
        Root mean square of what the line misses on its own cases, and on those of a dataset that
        it was not fitted to.
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
    """What is to be added to a value, in log-odds or logarithms, and how far that misses."""

    offset: float
    sd: float
    cases: int


@dataclass(frozen=True)
class PilotTrust:
    """How a strategy's gain follows from what a pilot gained and from what its line foretold.

    ``offset + line * foretold + pilot * gained``, in log-odds, for a pilot that is exact.

    Attributes
    ----------
    sd
        How far that misses, on datasets that it was not fitted to.
    spread
        Standard deviation of what exact pilots gain: noise of that size makes one worth half.
    """

    offset: float
    line: float
    pilot: float
    sd: float
    spread: float
    cases: int


@dataclass(frozen=True)
class Priors:
    """What strategies gained where it was measured, and how far measurements can be trusted.

    Attributes
    ----------
    provenance
        Rows, sets, sizes, seeds, input side and date, for people.
    evidence
        What each piece of evidence of the `variants` usually is.
    measured
        Of the linear probe: test accuracy against what cross-validation said.
    shared
        Correlation of what the lines of two strategies miss on the same case, in [0, 1].
    pilot
        By trained strategy: what a pilot tells of its gain.
    cost
        By strategy: logarithm of the seconds that a fit took over those that measured rates
        foretold.
    """

    provenance: str
    evidence: Mapping[str, Prior]
    variants: tuple[Variant, ...]
    measured: Offset
    shared: float
    pilot: Mapping[str, PilotTrust]
    cost: Mapping[str, Offset]


def priors_of(record: Mapping[str, Any]) -> Priors:
    """Read priors from plain values."""
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
    """Read the priors that come with the program."""
    return priors_of(
        json.loads(files("advisor.decide").joinpath("priors.json").read_text(encoding="utf-8"))
    )
