"""Type of the rules that yield data findings, and helpers for their texts and examples."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import AffectedImage, Finding
from strategies.data.dataset import Dataset
from strategies.data.image import ImageStats, LabelledImage, Pair, Split, shown

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


def affected(
    dataset: Dataset,
    image: LabelledImage,
    other: LabelledImage | None = None,
    score: float | None = None,
) -> AffectedImage:
    """Return an image of the dataset as one that a finding shows in."""
    other_path = None if other is None else other.path
    return AffectedImage(image.path, other_path, dataset.classes[image.label], score=score)


def closest_partners(dataset: Dataset, pairs: Sequence[Pair]) -> tuple[AffectedImage, ...]:
    """Return every image of the pairs once, with its most similar partner, clearest first."""
    found: dict[int, AffectedImage] = {}
    for pair in sorted(pairs, key=lambda p: -p.similarity):
        for image, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if id(image) not in found:
                found[id(image)] = affected(dataset, image, other, pair.similarity)
    return tuple(found.values())


def pair_lines(
    images: Sequence[AffectedImage], sign: str, *, labels: bool = False
) -> tuple[str, ...]:
    """Return lines such as ``"a.png = b.png"`` for some images and their partners, once a pair."""
    label_of = {image.path: image.label for image in images} if labels else {}
    pairs: dict[frozenset[object], str] = {}
    for image in images:
        if len(pairs) == MAX_EXAMPLES:
            break
        paths = (image.path, image.other_path)
        names = [shown(p) + (f" ({label_of[p]})" if labels else "") for p in paths if p]
        pairs.setdefault(frozenset(paths), f" {sign} ".join(names))
    return tuple(pairs.values())


def examples(lines: Iterable[str]) -> tuple[str, ...]:
    """Return the first `MAX_EXAMPLES` lines."""
    return tuple(lines)[:MAX_EXAMPLES]


def count(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, such as ``"1 image"`` or ``"1,200 images"``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
