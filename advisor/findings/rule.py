"""Type of the rules that yield data findings, and helpers for their texts and examples."""

from collections.abc import Callable, Iterable, Iterator

from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import Finding
from strategies.data.dataset import Dataset
from strategies.data.image import ImageStats, LabelledImage, Split

MAX_EXAMPLES = 5

Rule = Callable[[Dataset, ProbeEvidence], Iterator[Finding]]
"""A rule yields the findings that apply, from what was measured before; it opens no file."""


def with_stats(split: Split) -> tuple[tuple[LabelledImage, ImageStats], ...]:
    """Return the images whose pixels were inspected, with their statistics."""
    return tuple((image, image.stats) for image in split if image.stats is not None)


def examples(lines: Iterable[str]) -> tuple[str, ...]:
    """Return the first `MAX_EXAMPLES` lines."""
    return tuple(lines)[:MAX_EXAMPLES]


def count(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, such as ``"1 image"`` or ``"1,200 images"``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
