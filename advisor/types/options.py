"""Options of ``tl-advise`` and ``tl-auto run``, and tolerances within which accuracies are tied.

This module imports no deep-learning library, so that ``--help`` is fast.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from strategies.core.limits import MAX_IMAGES, MAX_QUARANTINE
from strategies.core.progress import OnNote, OnProgress, ignore_note

AUTO = "auto"
Prefer = Literal["accuracy", "balanced", "cheap"]
PilotMode = Literal["auto", "on", "off"]
NOISE: Mapping[Prefer, float] = {"accuracy": 0.0, "balanced": 0.005, "cheap": 0.03}
"""Accuracies that differ by at most this much count as equal; the cheaper strategy then wins."""
TIE_FULL_ERROR_RATE = 0.05
"""Below this error rate, `NOISE` shrinks in proportion to the error rate: half a percentage point
is a tenth of the errors at 95% accuracy, and would be all of them at 99.5%."""
SIMILAR_COST_RATIO = 2.0
"""Costs that differ by at most this factor count as equal; the more accurate one then wins."""


def tie_tolerance(accuracy: float, prefer: Prefer) -> float:
    """Return how far below this accuracy another may be and still count as a tie."""
    return NOISE[prefer] * min(1.0, (1 - accuracy) / TIE_FULL_ERROR_RATE)


def tie_upper_bound(accuracy: float, prefer: Prefer) -> float:
    """Return the highest accuracy with which this one still counts as tied.

    The largest u with ``u - tie_tolerance(u, prefer) <= accuracy``.
    """
    per_error = NOISE[prefer] / TIE_FULL_ERROR_RATE
    return min(accuracy + NOISE[prefer], (accuracy + per_error) / (1 + per_error))


@dataclass(frozen=True)
class Options:
    """Options of both commands; by default everything is chosen automatically.

    Attributes
    ----------
    backbone, input_px, device, strategy
        "auto" or None: chosen automatically and printed with the reason. Several backbones,
        separated by commas, are compared and the best one is used.
    val, test
        Folders with one folder per class, for validation or test images outside the data folder.
    workers
        Threads that read images while the network computes; None: one per core. The result does
        not depend on it.
    cache_dir
        Where features are cached; None: the user's cache folder.
    on_progress
        Callback for progress.
    root, group_by, max_images, max_quarantine
        How the data are read, see `load_dataset`.
    reference
        Folder of images like those that the backbone was pretrained on; None: the reference that
        this program ships.
    prefer
        How much more accurate a strategy must be to be preferred over a cheaper one, see
        `recommend`.
    pilot
        Whether to run a pilot, a short run of full fine-tuning; "auto": only where it may change
        the advice and costs little.
    ddp
        Number of data-parallel processes of a training run. Each has its own GPU, or all share
        the CPU (to try it out).
    on_note
        Called with a message for the user, for example when a training run deviates from its
        plan.
    """

    backbone: str = AUTO
    input_px: int | None = None
    strategy: str = AUTO
    val: Path | None = None
    test: Path | None = None
    seed: int = 0
    device: str = AUTO
    workers: int | None = None
    cache_dir: Path | None = None
    on_progress: OnProgress | None = field(default=None, compare=False)
    root: Path | None = None
    group_by: str | None = None
    max_images: int | None = MAX_IMAGES
    max_quarantine: float = MAX_QUARANTINE
    reference: Path | None = None
    prefer: Prefer = "balanced"
    pilot: PilotMode = "auto"
    ddp: int = 1
    on_note: OnNote = field(default=ignore_note, compare=False)


DEFAULTS = Options()
