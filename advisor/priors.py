"""What the benchmarks showed before this task was seen, as a few dozen numbers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Line:
    """A quantity as a straight line over domain similarity, with what the line leaves open.

    Attributes
    ----------
    at_similar, at_different
        Its value at similarity 1 and 0.
    sd
        Standard deviation of a new case around the line.
    cases
        Number of measured values.
    """

    at_similar: float
    at_different: float
    sd: float = 0.0
    cases: int = 0

    def at(self, similarity: float) -> float:
        """Return the value at a similarity in [0, 1]."""
        return self.at_different + similarity * (self.at_similar - self.at_different)


@dataclass(frozen=True)
class Priors:
    """What training gained over a linear probe where it was measured, and where to start it.

    Attributes
    ----------
    log_odds_gain
        Log-odds of a trained strategy's accuracy minus those of the linear probe's, by strategy;
        negative where training does worse.
    lr
        First learning rate of a fine-tune; the line is over its logarithm.
    """

    provenance: str
    log_odds_gain: Mapping[str, Line]
    lr: Line


@cache
def load_priors() -> Priors:
    """Read the priors that come with the program."""
    record = json.loads(files("advisor").joinpath("priors.json").read_text())
    lines = {name: Line(**line) for name, line in record["log_odds_gain"].items()}
    fixed = {"log_odds_gain": lines, "lr": Line(**record["lr"])}
    return Priors(**(record | fixed))
