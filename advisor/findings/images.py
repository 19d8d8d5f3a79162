"""Rules of findings TL010 to TL015: properties of the images, train-test shift and shortcuts."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from advisor.findings.rule import MAX_EXAMPLES, Rule, affected, count, examples, with_stats
from advisor.findings.statistics import Shortcut, predicts_label, quantile_bins, two_sample_test
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import Finding
from strategies.data.dataset import Dataset
from strategies.data.image import ImageStats, LabelledImage, labels_of, shown
from strategies.data.thumbnails.vectors import MIN_CONTRAST

SMALL_SHARE = 0.5
"""Images are small if their median short side is below this share of the network's input size."""
GREY_SHARE = 0.99
EXTREME_ASPECT, EXTREME_SHARE = 2.0, 0.05
SHIFTED_AUC, SHIFTED_P = 0.65, 1e-3
SHORTCUT_P = 1e-6
SHORTCUT_LIFT = {"file format": 0.1, "resolution": 0.1, "colour": 0.1, "file size": 0.3}
"""A property is a shortcut if its accuracy exceeds chance by this share of what chance leaves. The
threshold of the file size is higher, because it depends a little on what the image shows."""
MIN_IMAGES = 20
"""Shortcuts are not searched for in fewer images."""


def _small_images(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    sides = np.array([min(p.width_px, p.height_px) for p in dataset.fit_split])
    if len(sides) and np.median(sides) < SMALL_SHARE * evidence.input_px:
        rows = np.argsort(sides, kind="stable")
        small = rows[sides[rows] < SMALL_SHARE * evidence.input_px]
        smallest = dataset.fit_split[small[0]]
        yield Finding(
            "TL010",
            "tip",
            f"small images: median short side {np.median(sides):.0f} px, network input "
            f"{evidence.input_px} px",
            "Upscaling costs time and adds no information.",
            "Use larger images if you have them, or try --input-px "
            f"{max(32, 32 * round(evidence.input_px / 64))}.",
            (f"{shown(smallest.path)}: {smallest.width_px} x {smallest.height_px}",),
            affected=tuple(
                affected(dataset, dataset.fit_split[row], score=float(sides[row])) for row in small
            ),
        )


def _greyscale(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    inspected = with_stats(dataset.fit_split)
    if inspected and np.mean([stats.is_grey for _, stats in inspected]) >= GREY_SHARE:
        grey = tuple(affected(dataset, p) for p, stats in inspected if stats.is_grey)
        yield Finding(
            "TL011",
            "tip",
            "the images are greyscale",
            "The backbone was pretrained on colour images; its colour features have no use here.",
            "Nothing to do if they are greyscale by nature; otherwise use the colour originals.",
            examples(shown(image.path) for image in grey[:MAX_EXAMPLES]),
            affected=grey,
        )


def _extreme_aspect_ratios(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    split = dataset.fit_split
    ratio = np.array([max(p.width_px / p.height_px, p.height_px / p.width_px) for p in split])
    extreme = np.flatnonzero(ratio > EXTREME_ASPECT)
    if len(split) and len(extreme) >= max(1, EXTREME_SHARE * len(split)):
        worst = extreme[np.argsort(-ratio[extreme], kind="stable")]
        yield Finding(
            "TL012",
            "tip",
            f"{count(len(extreme), 'image')} with one side more than twice the other",
            "The network sees the centre crop; the ends are cut off.",
            "Crop to the part that matters, or pad to a square.",
            examples(
                f"{shown(split[i].path)}: {split[i].width_px} x {split[i].height_px}"
                for i in worst[:MAX_EXAMPLES]
            ),
            affected=tuple(affected(dataset, split[i], score=float(ratio[i])) for i in worst),
        )


def _blank_images(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    blank = tuple(
        affected(dataset, image, score=float(stats.contrast))
        for image, stats in with_stats(dataset.fit_split)
        if stats.contrast < MIN_CONTRAST
    )
    if blank:
        yield Finding(
            "TL013",
            "issue",
            f"{count(len(blank), 'blank image')}",
            "Blank images have a single colour; nothing can be learned from them.",
            "Remove them, or find out what produced them.",
            examples(f"{shown(image.path)} ({image.label})" for image in blank[:MAX_EXAMPLES]),
            affected=blank,
        )


def _test_shift(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    if evidence.train_features is None or evidence.test_features is None:
        return
    test = two_sample_test(evidence.train_features, evidence.test_features, evidence.seed)
    if test.auc >= SHIFTED_AUC and test.p_value < SHIFTED_P:
        yield Finding(
            "TL014",
            "issue",
            "distribution shift between train and test",
            f"A linear classifier separates their features with an AUC of {test.auc:.2f} (0.5 is "
            "chance), so validation accuracy will not carry over to test.",
            "Find out what differs (source, class proportions, camera), and whether future images "
            "will be like train or like test.",
        )


def _shortcuts(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    inspected = with_stats(dataset.fit_split)
    if len(inspected) < MIN_IMAGES:
        return
    labels = labels_of(tuple(p for p, _ in inspected))
    sizes = quantile_bins([stats.n_bytes for _, stats in inspected])
    properties: dict[str, Sequence[object]] = {
        "file format": [(stats.format, p.path.suffix.lower()) for p, stats in inspected],
        "resolution": [(p.width_px, p.height_px) for p, _ in inspected],
        "colour": [stats.is_grey for _, stats in inspected],
        "file size": sizes,
    }
    for name, values in properties.items():
        found = predicts_label(values, labels, evidence.seed)
        if found.p_value < SHORTCUT_P and _lift(found) >= SHORTCUT_LIFT[name]:
            yield Finding(
                "TL015",
                "tip" if name == "file size" else "issue",
                f"the {name} predicts the label",
                f"Alone, it predicts the class of {100 * found.accuracy:.0f}% of held-out images; "
                f"always predicting the largest class is right for {100 * found.chance:.0f}%. "
                f"Unless the {name} follows from what the images show, a network may learn how "
                "the files were made instead.",
                "Prepare the images of all classes in the same way, from the same source.",
                _one_example_per_class(dataset, inspected, values),
            )


def _lift(shortcut: Shortcut) -> float:
    """Return the accuracy above chance, as a share of what chance leaves."""
    return (shortcut.accuracy - shortcut.chance) / max(1 - shortcut.chance, 1e-9)


def _one_example_per_class(
    dataset: Dataset,
    inspected: Sequence[tuple[LabelledImage, ImageStats]],
    values: Sequence[object],
) -> tuple[str, ...]:
    """Return one image per class that has the class's most frequent value."""
    lines = []
    for label in range(min(dataset.n_classes, MAX_EXAMPLES)):
        rows = [i for i, (p, _) in enumerate(inspected) if p.label == label]
        if rows:
            most_frequent = Counter(str(values[i]) for i in rows).most_common(1)[0][0]
            row = next(i for i in rows if str(values[i]) == most_frequent)
            image, stats = inspected[row]
            lines.append(
                f"{dataset.classes[label]}: {shown(image.path)} ({stats.format}, "
                f"{image.width_px} x {image.height_px}, {stats.n_bytes:,} bytes)"
            )
    return tuple(lines)


IMAGE_RULES: tuple[Rule, ...] = (
    _small_images,
    _greyscale,
    _extreme_aspect_ratios,
    _blank_images,
    _test_shift,
    _shortcuts,
)
