"""What a rule of the findings is, and how it shows examples."""

from collections.abc import Callable, Iterable, Iterator

from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import Finding
from strategies.data.dataset import Dataset
from strategies.data.image import ImageStats, LabelledImage, Split

MAX_EXAMPLES = 5


Rule = Callable[[Dataset, ProbeEvidence], Iterator[Finding]]
"""Yields a finding where it applies; opens no file."""


def with_stats(split: Split) -> tuple[tuple[LabelledImage, ImageStats], ...]:
    """Return the images that were looked at, with what was seen."""
    return tuple((p, p.stats) for p in split if p.stats is not None)


def examples(lines: Iterable[str]) -> tuple[str, ...]:
    """Return the first few lines."""
    return tuple(lines)[:MAX_EXAMPLES]


def count(n: int, one: str, many: str | None = None) -> str:
    """Return ``"1 image"``, ``"1,200 images"``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
