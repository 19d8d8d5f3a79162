"""From a distance to a similarity between 0 and 1; ``benchmarks/fit_domain.py`` wrote the maps."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from strategies.core.metrics import Interval


@dataclass(frozen=True)
class Calibration:
    """A monotone map from a distance to a similarity, with measured landmarks on it.

    ``1 - ((distance - same) / (far - same)) ** power``, at least 0 and at most 1.

    Attributes
    ----------
    same, far
        Distances that score 1 and 0.
    power
        At most 1: equal steps of the score are about equally well resolved everywhere.
    landmarks
        Name and distance of sets measured before.
    """

    same: float
    far: float
    power: float
    landmarks: tuple[tuple[str, float], ...]

    def score(self, distance: float) -> float:
        """Map a distance to a similarity in [0, 1], falling."""
        position = np.clip((distance - self.same) / (self.far - self.same), 0, 1)
        return float(1 - position**self.power)

    def interval(self, distance: Interval) -> Interval:
        """Map an interval of distances to one of similarities."""
        return Interval(*(self.score(d) for d in (distance.high, distance.mid, distance.low)))

    def between(self, distance: float) -> tuple[str | None, str | None]:
        """Name the landmarks next to a distance: the nearer to ImageNet, then the farther."""
        nearer = [(d, name) for name, d in self.landmarks if d <= distance]
        farther = [(d, name) for name, d in self.landmarks if d > distance]
        return (max(nearer)[1] if nearer else None, min(farther)[1] if farther else None)


@cache
def calibrations() -> Mapping[str, Calibration]:
    """Read the maps: "bn_shift" from a reference, "bn_shift_running" without, and "kernel"."""
    text = Path(__file__).with_name("calibration.json").read_text(encoding="utf-8")
    return {
        name: Calibration(
            s["same"], s["far"], s["power"], tuple((k, v) for k, v in s["landmarks"])
        )
        for name, s in json.loads(text)["calibrations"].items()
    }
