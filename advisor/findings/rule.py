"""Type of the rules that yield data findings, and helpers for their texts and examples."""

from collections.abc import Callable, Iterable, Iterator

from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import Finding
from strategies.data.dataset import Dataset
from strategies.data.image import ImageStats, LabelledImage, Split

MAX_EXAMPLES = 5

# Four findings make the advice void (`Finding.voids_advice`): TL003 and TL004 from these shares
# on, TL008 with a single class, and TL201 where no measurement is above chance. Other issues make
# a number less certain; these make it meaningless.
VOID_CONTRADICTIONS = 0.05
"""Share of images under two labels: at least half as many cannot be predicted correctly."""
VOID_LEAK = 0.05
"""Share of a split that also occurs in another: its accuracy may be too high by as much, which is
more than separates most strategies. A near-duplicate counts half: it may be another image."""

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
