"""What the data findings rest on, and how they show it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from advisor.types import Finding
from strategies.core.metrics import Scores
from strategies.core.pictures import Look, Picture, Split
from strategies.core.task import ImageTask

MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Measured:
    """What the findings rest on, besides the task.

    Attributes
    ----------
    pictures, scores
        Some pictures of train and val, and their calibrated out-of-fold scores (n, classes).
    train_features, test_features
        Penultimate activations of some pictures of both; labels are not needed.
    """

    input_px: int
    pictures: Split = ()
    scores: Scores | None = None
    train_features: Scores | None = None
    test_features: Scores | None = None
    seed: int = 0


Rule = Callable[[ImageTask, Measured], Iterator[Finding]]
"""Yields a finding where it applies; opens no file."""


def looks(split: Split) -> tuple[tuple[Picture, Look], ...]:
    """Return the pictures that were looked at, with what was seen."""
    return tuple((p, p.look) for p in split if p.look is not None)


def examples(lines: Iterable[str]) -> tuple[str, ...]:
    """Return the first few lines."""
    return tuple(lines)[:MAX_EXAMPLES]


def count(n: int, one: str, many: str | None = None) -> str:
    """Return ``"1 picture"``, ``"1,200 pictures"``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
