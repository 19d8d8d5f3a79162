"""What a rule of the findings is, and how it shows examples."""

from collections.abc import Callable, Iterable, Iterator

from advisor.measure.probe_evidence import Measured
from advisor.types.advice import Finding
from strategies.data.dataset import ImageTask
from strategies.data.image import Look, Picture, Split

MAX_EXAMPLES = 5


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
