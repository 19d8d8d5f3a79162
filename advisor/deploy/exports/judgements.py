"""How well an export agrees with the classifier on unknown images and on prediction sets."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from strategies.core.metrics import Labels
from strategies.models.reliability.outputs import Outputs
from strategies.models.reliability.reliability import COVERAGE, FALSE_ALARMS, Reliability

MAX_CHANGED = 0.02
"""Share of images that an export may judge otherwise than the classifier without a warning. One
image never is a warning: the threshold may be the score of one of these images, and then the
smallest difference changes its judgement."""


@dataclass(frozen=True)
class Both:
    """A number of the export, and the same one of the classifier."""

    export: float
    own: float

    def record(self) -> list[float]:
        """Return both, the export's first."""
        return [round(self.export, 6), round(self.own, 6)]


@dataclass(frozen=True)
class JudgementAgreement:
    """How an export and the classifier judge the same images.

    Thresholds are the classifier's, at the default rate of false alarms and coverage.

    Attributes
    ----------
    n
        Number of images.
    unknown, unknown_changed
        Share of images that are called unknown, and share of those about which export and
        classifier differ; None: the format has no unknown score.
    set_size, sets_changed
        Mean number of classes in a prediction set, and share of images whose sets differ.
    coverage
        Share of labelled images whose class is in the set; None without labels.
    """

    n: int
    unknown: Both | None
    unknown_changed: float | None
    set_size: Both
    sets_changed: float
    coverage: Both | None

    def sentences(self) -> list[str]:
        """Return the result as sentences."""
        lines = []
        if self.unknown is None:
            lines.append("This format has no unknown score: it cannot tell unknown images.")
        else:
            lines.append(
                f"Called unknown at a stated {100 * FALSE_ALARMS:.0f}% of false alarms: "
                f"{_per_cent(self.unknown)}; different on {_share(self.unknown_changed)} of the "
                "images."
            )
        covered = "" if self.coverage is None else f", coverage {_per_cent(self.coverage)}"
        lines.append(
            f"Prediction sets at a stated coverage of {100 * COVERAGE:.0f}%: mean size "
            f"{self.set_size.export:.2f}, that of tl-auto predict {self.set_size.own:.2f}"
            f"{covered}; different on {_share(self.sets_changed)} of the images."
        )
        return lines

    def warnings(self) -> list[str]:
        """Return what changed more than `MAX_CHANGED`, as sentences; empty: nothing."""
        lines = []
        if self._is_much(self.unknown_changed):
            lines.append(
                f"This export and tl-auto predict differ on {_share(self.unknown_changed)} of the "
                f"images about which is unknown, more than {100 * MAX_CHANGED:.0f}%. Choose a "
                "threshold on unknown scores of this file, or use float16 or float32."
            )
        if self._is_much(self.sets_changed):
            lines.append(
                f"Prediction sets differ on {_share(self.sets_changed)} of the images, more than "
                f"{100 * MAX_CHANGED:.0f}%: the stated coverage is that of tl-auto predict."
            )
        return lines

    def record(self) -> dict[str, Any]:
        """Return the result as plain JSON values; pairs are of the export and of predict."""
        return {
            "false_alarms": FALSE_ALARMS,
            "unknown": None if self.unknown is None else self.unknown.record(),
            "unknown_changed": _rounded(self.unknown_changed),
            "coverage": COVERAGE,
            "covered": None if self.coverage is None else self.coverage.record(),
            "set_size": self.set_size.record(),
            "sets_changed": _rounded(self.sets_changed),
        }

    def _is_much(self, changed: float | None) -> bool:
        return changed is not None and changed > MAX_CHANGED and changed * self.n > 1.5


def judgement_agreement(
    found: Outputs, own: Outputs, labels: Labels, reliability: Reliability
) -> JudgementAgreement:
    """Compare what an export says about images with what the classifier says.

    Parameters
    ----------
    found, own
        Outputs of the export and of the classifier for the same images.
    labels
        Classes of the images, (n,); -1 where they are not known.
    reliability
        That of the classifier.
    """
    assert own.unknown is not None
    unknown = changed = None
    if found.unknown is not None:
        threshold = reliability.threshold(FALSE_ALARMS)
        export, other = (x > threshold for x in (found.unknown, own.unknown))
        unknown = Both(float(export.mean()), float(other.mean()))
        changed = float(np.mean(export != other))
    sets, own_sets = (reliability.prediction_sets(x.probabilities, COVERAGE) for x in (found, own))
    known = np.flatnonzero(labels >= 0)
    inside = [float(s[known, labels[known]].mean()) for s in (sets, own_sets) if len(known)]
    return JudgementAgreement(
        n=len(labels),
        unknown=unknown,
        unknown_changed=changed,
        set_size=Both(float(sets.sum(axis=1).mean()), float(own_sets.sum(axis=1).mean())),
        sets_changed=float(np.any(sets != own_sets, axis=1).mean()),
        coverage=Both(*inside) if inside else None,
    )


def _per_cent(both: Both) -> str:
    return f"{100 * both.export:.1f}% (tl-auto predict {100 * both.own:.1f}%)"


def _share(value: float | None) -> str:
    return f"{100 * (value or 0):.1f}%"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
