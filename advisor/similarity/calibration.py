"""Calibration: map a distance from ImageNet to a similarity in [0, 1].

The curve is in ``calibration.json``, written by ``benchmarks/fit_domain.py``.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from strategies.core.metrics import Interval


@dataclass(frozen=True)
class Calibration:
    """Monotone map from a distance to a similarity, with landmark datasets.

    ``1 - ((distance - same) / (far - same)) ** power``, clipped to [0, 1].

    Attributes
    ----------
    same, far
        Distances with similarity 1 and 0.
    power
        At most 1. It is chosen so that the standard error of the similarity is about the same
        everywhere.
    landmarks
        Names and distances of landmark datasets, measured before.
    """

    same: float
    far: float
    power: float
    landmarks: tuple[tuple[str, float], ...]

    def score(self, distance: float) -> float:
        """Map a distance to a similarity in [0, 1]; larger distances are less similar."""
        position = np.clip((distance - self.same) / (self.far - self.same), 0, 1)
        return float(1 - position**self.power)

    def interval(self, distance: Interval) -> Interval:
        """Map an interval of distances to one of similarities."""
        return Interval(*(self.score(d) for d in (distance.high, distance.mid, distance.low)))

    def between(self, distance: float) -> tuple[str | None, str | None]:
        """Return the landmarks next to a distance: the nearer to ImageNet, then the farther."""
        nearer = [(d, name) for name, d in self.landmarks if d <= distance]
        farther = [(d, name) for name, d in self.landmarks if d > distance]
        return (max(nearer)[1] if nearer else None, min(farther)[1] if farther else None)


@cache
def calibration() -> Calibration:
    """Read the calibration of the embedded network's BatchNorm shift from ImageNet."""
    text = Path(__file__).with_name("calibration.json").read_text(encoding="utf-8")
    c = json.loads(text)["calibration"]
    landmarks = tuple((name, distance) for name, distance in c["landmarks"])
    return Calibration(c["same"], c["far"], c["power"], landmarks)
