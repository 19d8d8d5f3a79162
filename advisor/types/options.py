"""What both commands take: as data, so that asking costs no import of a network library."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from strategies.core.progress import OnNote, OnProgress, ignore_note
from strategies.data.sampling import MAX_IMAGES, MAX_QUARANTINE

AUTO = "auto"
Prefer = Literal["accuracy", "balanced", "cheap"]
PilotMode = Literal["auto", "on", "off"]
NOISE: Mapping[Prefer, float] = {"accuracy": 0.0, "balanced": 0.005, "cheap": 0.03}
"""Accuracies that differ by no more than this count as equal; the cheaper one is taken."""
RARE_ERRORS = 0.05
"""Where fewer images than this are named wrongly, `NOISE` shrinks with their share: half a point
is a tenth of the errors at 95%, and would be all of them at 99.5%."""
LIKE_COSTS = 2.0
"""What costs no more than so many times as much is no dearer: there the better one is taken."""


def equal_within(accuracy: float, prefer: Prefer) -> float:
    """Return by how much less than this accuracy another may be and still count as its equal."""
    return NOISE[prefer] * min(1.0, (1 - accuracy) / RARE_ERRORS)


def least_better(accuracy: float, prefer: Prefer) -> float:
    """Return the accuracy above which this one is no equal any more (`equal_within` inverted)."""
    per_error = NOISE[prefer] / RARE_ERRORS
    return min(accuracy + NOISE[prefer], (accuracy + per_error) / (1 + per_error))


@dataclass(frozen=True)
class Options:
    """What both commands take; the defaults choose by themselves.

    Attributes
    ----------
    backbone, input_px, device, strategy
        "auto" or None: chosen here, printed with the reason. Several backbones with commas
        between them are compared, and the best is used.
    validation, test
        Folders of class folders given apart from the data.
    workers
        Threads that read images beside the network; None: one a core. The answer is the same.
    cache_dir
        Where features are kept; None: the user's cache folder.
    root, group_by, max_images, max_quarantine
        How the data are read, see `load_dataset`.
    reference
        A folder of images like those that the backbone was pretrained with; None: what this
        program ships.
    prefer
        What counts as equal when accuracy is weighed against cost, see `recommend`.
    pilot
        Whether a short fine-tuning is tried; "auto": where it may change the advice at a cost
        that is small against what is advised.
    ddp
        Processes that share every batch of a training, each on a GPU of its own (or all on the
        CPU, to try it).
    on_note
        Called with a sentence where a training goes another way than it was meant to.
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
