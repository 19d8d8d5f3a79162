"""Findings TL010 to TL015: how the images look, and what tells their labels besides."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from advisor.findings.rule import MAX_EXAMPLES, Rule, count, examples, with_stats
from advisor.findings.statistics import Shortcut, in_bins, predicts_label, two_sample_test
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import Finding
from strategies.data.dataset import Dataset
from strategies.data.image import ImageStats, LabelledImage, labels_of, shown
from strategies.data.near_duplicates import MIN_CONTRAST

TINY = 0.5
"""Images are tiny if their median short side is under this share of the network's input."""
GREY_SHARE = 0.99
EXTREME_ASPECT, EXTREME_SHARE = 2.0, 0.05
SHIFTED_AUC, SHIFTED_P = 0.65, 1e-3
SHORTCUT_P = 1e-6
SHORTCUT_LIFT = {"file format": 0.1, "resolution": 0.1, "colour": 0.1, "file size": 0.3}
"""Share of the way from chance to certainty that makes a shortcut. A file's size depends a little
on what is in the image: more is asked of it."""
FEWEST = 20
"""Shortcuts are looked for in at least this many images."""


def _tiny_images(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    sides = np.array([min(p.width_px, p.height_px) for p in dataset.fit_split])
    if len(sides) and np.median(sides) < TINY * measured.input_px:
        smallest = dataset.fit_split[int(sides.argmin())]
        yield Finding(
            "TL010",
            "tip",
            f"images of {np.median(sides):.0f} px for a network of {measured.input_px} px",
            "They are enlarged, which costs time and adds nothing.",
            f"Give larger images if there are any, or try --input-px "
            f"{max(32, 32 * round(measured.input_px / 64))}.",
            (f"{shown(smallest.path)}: {smallest.width_px} x {smallest.height_px}",),
        )


def _grey_only(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    seen = with_stats(dataset.fit_split)
    if seen and np.mean([stats.is_grey for _, stats in seen]) >= GREY_SHARE:
        yield Finding(
            "TL011",
            "tip",
            "the images are grey",
            "The network was trained on colour; its colour features are idle here.",
            "Nothing, if they are grey by nature; otherwise give the originals.",
            examples(shown(p.path) for p, stats in seen if stats.is_grey),
        )


def _extreme_aspects(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    split = dataset.fit_split
    ratio = np.array([max(p.width_px / p.height_px, p.height_px / p.width_px) for p in split])
    extreme = np.flatnonzero(ratio > EXTREME_ASPECT)
    if len(split) and len(extreme) >= max(1, EXTREME_SHARE * len(split)):
        worst = extreme[np.argsort(-ratio[extreme])]
        yield Finding(
            "TL012",
            "tip",
            f"{count(len(extreme), 'image')} more than twice as long as wide",
            "The network sees the central square; the ends are cut off.",
            "Crop them to what matters, or pad them to squares.",
            examples(
                f"{shown(split[i].path)}: {split[i].width_px} x {split[i].height_px}"
                for i in worst
            ),
        )


def _blank_images(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    blank = [p for p, stats in with_stats(dataset.fit_split) if stats.contrast < MIN_CONTRAST]
    if blank:
        yield Finding(
            "TL013",
            "issue",
            f"{count(len(blank), 'blank image')}",
            "They are of one colour throughout: nothing can be learnt from them.",
            "Remove them, or find out what made them.",
            examples(f"{shown(p.path)} ({dataset.classes[p.label]})" for p in blank),
        )


def _shifted_test(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    if measured.train_features is None or measured.test_features is None:
        return
    test = two_sample_test(measured.train_features, measured.test_features, measured.seed)
    if test.auc >= SHIFTED_AUC and test.p_value < SHIFTED_P:
        yield Finding(
            "TL014",
            "issue",
            "test differs from train",
            f"A linear rule tells their features apart with an AUC of {test.auc:.2f} "
            "(0.5: not at all); accuracy on validation will not carry over to test.",
            "Find out what differs (origin, share of the classes, camera), and whether later "
            "images will be like train or like test.",
        )


def _shortcuts(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    seen = with_stats(dataset.fit_split)
    if len(seen) < FEWEST:
        return
    labels = labels_of(tuple(p for p, _ in seen))
    sizes = in_bins([stats.n_bytes for _, stats in seen])
    facts: dict[str, Sequence[object]] = {
        "file format": [(stats.format, p.path.suffix.lower()) for p, stats in seen],
        "resolution": [(p.width_px, p.height_px) for p, _ in seen],
        "colour": [stats.is_grey for _, stats in seen],
        "file size": sizes,
    }
    for name, values in facts.items():
        found = predicts_label(values, labels, measured.seed)
        if found.p_value < SHORTCUT_P and _lift(found) >= SHORTCUT_LIFT[name]:
            yield Finding(
                "TL015",
                "tip" if name == "file size" else "issue",
                f"the {name} tells the label",
                f"It alone names the class of {100 * found.accuracy:.0f}% of held-out images; "
                f"always naming the largest class, {100 * found.chance:.0f}%. Unless it follows "
                "from what they show, a network may learn how the files were made.",
                "Bring all classes into the same form, from the same source.",
                _one_example_a_class(dataset, seen, values),
            )


def _lift(shortcut: Shortcut) -> float:
    return (shortcut.accuracy - shortcut.chance) / max(1 - shortcut.chance, 1e-9)


def _one_example_a_class(
    dataset: Dataset, seen: Sequence[tuple[LabelledImage, ImageStats]], values: Sequence[object]
) -> tuple[str, ...]:
    """Show the commonest value of some classes."""
    shown_classes = []
    for label in range(min(dataset.n_classes, MAX_EXAMPLES)):
        rows = [i for i, (p, _) in enumerate(seen) if p.label == label]
        if rows:
            common = Counter(str(values[i]) for i in rows).most_common(1)[0][0]
            row = next(i for i in rows if str(values[i]) == common)
            image, stats = seen[row]
            shown_classes.append(
                f"{dataset.classes[label]}: {shown(image.path)} ({stats.format}, "
                f"{image.width_px} x {image.height_px}, {stats.n_bytes:,} bytes)"
            )
    return tuple(shown_classes)


IMAGE_RULES: tuple[Rule, ...] = (
    _tiny_images,
    _grey_only,
    _extreme_aspects,
    _blank_images,
    _shifted_test,
    _shortcuts,
)
