"""Rules of findings TL017 to TL019: images that are blurred, dark or over-exposed.

Each compares an image with a threshold and with its dataset: where the typical image is smooth,
dark or white by nature (X-rays, galaxies, drawings), the rule does not apply.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from advisor.findings.rule import MAX_EXAMPLES, Rule, affected, count, with_stats
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import AffectedImage, Finding
from strategies.data.dataset import Dataset
from strategies.data.image import ImageStats, LabelledImage, shown
from strategies.data.thumbnails.vectors import MIN_CONTRAST

BLURRED = 100.0
"""An image may be blurred below this sharpness (`ImageStats.sharpness`)."""
SHARP_FACTOR = 4.0
"""Blurred images are searched for where the median sharpness is above this many times `BLURRED`;
datasets below that are smooth by nature."""
OUTLIER = 3.5
"""A blurred image is an outlier of the logarithm of sharpness by this modified z-score (Iglewicz
and Hoaglin, How to detect and handle outliers, 1993)."""
DARK = 82
"""An image is dark if 99% of its pixels are below this level, 0 to 255: CleanVision's threshold of
0.32."""
LIGHT_FACTOR = 2.0
"""Dark images are searched for where the median level is at least this many times `DARK`."""
CLIPPED_SHARE, SHADOWS = 0.3, 100
"""An image is over-exposed if this share of its pixels is nearly white, and 99% are above this
grey level: a white background alone leaves the shadows of the object."""
WHITE_SHARE = 0.1
"""Over-exposed images are searched for where less than this share of the median image is nearly
white."""

Inspected = Sequence[tuple[LabelledImage, ImageStats]]
Values = NDArray[np.float64]


def _blurred_images(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    inspected = _not_blank(dataset)
    sharpness = np.array([stats.sharpness for _, stats in inspected])
    known = np.isfinite(sharpness)
    if not known.any() or np.median(sharpness[known]) < SHARP_FACTOR * BLURRED:
        return
    is_low = _outliers_below(np.log(sharpness.clip(1e-3)), known)
    # Dark and over-exposed images have little detail for another reason.
    is_other = _dark(inspected) | _over_exposed(inspected)
    is_blurred = (sharpness < BLURRED) & is_low & ~is_other
    blurred = _most_extreme(dataset, inspected, sharpness, is_blurred)
    if blurred:
        yield Finding(
            "TL017",
            "tip",
            f"{count(len(blurred), 'blurred image')}",
            "They have hardly any fine detail, and much less than the other images: they are out "
            "of focus, blurred by motion or enlarged, or show something smooth.",
            "Look at them; remove those that a person could not classify either.",
            _lines(blurred),
            affected=blurred,
        )


def _dark_images(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    inspected = _not_blank(dataset)
    highlights = np.array([float(stats.highlights) for _, stats in inspected])
    dark = _most_extreme(dataset, inspected, highlights, _dark(inspected))
    if dark:
        yield Finding(
            "TL018",
            "tip",
            f"{count(len(dark), 'dark image')}",
            f"99% of their pixels are darker than {DARK} of 255, unlike the other images.",
            "Find out whether future images will be as dark. If not, brighten or remove them.",
            _lines(dark),
            affected=dark,
        )


def _over_exposed_images(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    inspected = _not_blank(dataset)
    shadows = np.array([float(stats.shadows) for _, stats in inspected])
    white = _most_extreme(dataset, inspected, -shadows, _over_exposed(inspected))
    if white:
        yield Finding(
            "TL019",
            "tip",
            f"{count(len(white), 'over-exposed image')}",
            f"At least {100 * CLIPPED_SHARE:.0f}% of their pixels are nearly white, and 99% are "
            f"brighter than {SHADOWS} of 255: what was there cannot be restored.",
            "Find out whether future images will be as bright. If not, remove them.",
            _lines(white),
            affected=white,
        )


def _dark(inspected: Inspected) -> NDArray[np.bool_]:
    """Return which images are dark; none where the typical image is not bright, (n,)."""
    highlights = np.array([stats.highlights for _, stats in inspected])
    is_searched = len(inspected) > 0 and np.median(highlights) >= LIGHT_FACTOR * DARK
    return np.asarray((highlights < DARK) & is_searched)


def _over_exposed(inspected: Inspected) -> NDArray[np.bool_]:
    """Return which images are over-exposed; none where the typical image is white, (n,)."""
    shadows = np.array([stats.shadows for _, stats in inspected])
    clipped = np.array([stats.clipped_share for _, stats in inspected])
    is_searched = len(inspected) > 0 and np.median(clipped) < WHITE_SHARE
    return np.asarray((clipped >= CLIPPED_SHARE) & (shadows > SHADOWS) & is_searched)


def _not_blank(dataset: Dataset) -> Inspected:
    """Return the images with their statistics, but for blank ones: those have a finding."""
    inspected = with_stats(dataset.fit_split)
    return [(image, stats) for image, stats in inspected if stats.contrast >= MIN_CONTRAST]


def _outliers_below(values: Values, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which values are far below the median, by the median absolute deviation."""
    median = np.median(values[known])
    deviation = np.median(np.abs(values[known] - median)) / 0.6745  # that of normal values is 1
    return np.asarray(values < median - OUTLIER * deviation)


def _most_extreme(
    dataset: Dataset, inspected: Inspected, values: Values, chosen: NDArray[np.bool_]
) -> tuple[AffectedImage, ...]:
    """Return the chosen images with the absolute values as scores, lowest values first."""
    rows = sorted(np.flatnonzero(chosen).tolist(), key=values.__getitem__)
    return tuple(
        affected(dataset, inspected[row][0], score=abs(float(values[row]))) for row in rows
    )


def _lines(images: Sequence[AffectedImage]) -> tuple[str, ...]:
    return tuple(f"{shown(image.path)} ({image.label})" for image in images[:MAX_EXAMPLES])


QUALITY_RULES: tuple[Rule, ...] = (_blurred_images, _dark_images, _over_exposed_images)
