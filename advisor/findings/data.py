"""check_data(): coded findings TL001 to TL016 about the images and their labels.

Every rule is a function of what was measured while the images were read; none opens a file.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from advisor.findings.images import IMAGE_RULES
from advisor.findings.rule import Rule, count, examples
from advisor.findings.statistics import CONFIDENT, suspect_labels
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import Finding
from strategies.data.dataset import Dataset
from strategies.data.image import labels_of, shown
from strategies.data.near_duplicates import CERTAIN

__all__ = ["ProbeEvidence", "check_data"]

MAX_SUSPECTS = 50
IMBALANCED = 5.0
TOO_FEW, FEW = 5, 20
SERIOUS_LEAK = 0.01
MIN_DOUBTED, MIN_DOUBTED_SHARE = 3, 0.01


def check_data(dataset: Dataset, measured: ProbeEvidence) -> tuple[Finding, ...]:
    """Return the findings about a dataset's data, in the order of their codes.

    The test split may be hidden: leaks are remembered, and nothing else here needs its labels.
    """
    return tuple(finding for rule in _RULES for finding in rule(dataset, measured))


def _quarantined(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    if not dataset.skipped:
        return
    reasons = Counter(s.reason for s in dataset.skipped).most_common(3)
    yield Finding(
        "TL001",
        "issue",
        f"{count(len(dataset.skipped), 'file')} left out",
        "; ".join(f"{n} x {reason}" for reason, n in reasons) + ".",
        "Look at the list of quarantined files; mend or remove them. None was changed.",
        examples(f"{shown(s.path)}: {s.reason}" for s in dataset.skipped),
    )


def _copies_within_a_class(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    pairs = [p for p in dataset.pairs if p.exact and p.first.label == p.second.label]
    if pairs:
        yield Finding(
            "TL002",
            "tip",
            f"{count(len(pairs), 'exact copy', 'exact copies')} within a class",
            "The same bytes under several names weigh more than other images.",
            "Keep one of each. A split that is cut here never separates copies.",
            examples(f"{shown(p.first.path)} = {shown(p.second.path)}" for p in pairs),
        )


def _one_image_two_labels(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    pairs = [
        p
        for p in dataset.pairs
        if p.first.label != p.second.label and (p.exact or p.similarity >= CERTAIN)
    ]
    if pairs:
        n_exact = sum(p.exact for p in pairs)
        yield Finding(
            "TL003",
            "issue",
            f"{count(len(pairs), 'image')} under two labels",
            f"Same byte by byte: {n_exact} of them; the others very nearly so. One of the two "
            "labels is wrong, or the classes overlap.",
            "Decide on one label for each and remove the other copy.",
            examples(
                f"{shown(p.first.path)} ({dataset.classes[p.first.label]}) = "
                f"{shown(p.second.path)} ({dataset.classes[p.second.label]})"
                for p in pairs
            ),
        )


def _leaks(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    for leak in dataset.leaks:
        share = (leak.n_exact + leak.n_near) / leak.n
        yield Finding(
            "TL004",
            "issue" if share >= SERIOUS_LEAK else "tip",
            f"{100 * share:.1f}% of {leak.split} occurs in {leak.source}",
            f"{leak.n_exact} exact copies and {leak.n_near} near-duplicates among {leak.n} "
            f"images: accuracy on {leak.split} is partly memory.",
            f"Remove them from {leak.source}, or let the program cut the split: it keeps "
            "duplicates together.",
            leak.examples,
        )


def _near_duplicates(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    near = [p for p in dataset.pairs if not p.exact]
    if near:
        involved = {id(p.first) for p in near} | {id(p.second) for p in near}
        yield Finding(
            "TL005",
            "tip",
            f"{count(len(involved), 'image')} with a near-duplicate",
            "They differ from another one by little more than encoding, size or a small turn; "
            "they add less than their number.",
            "Nothing, if the split was cut here: they were kept on one side. Otherwise group "
            "them with --group-by.",
            examples(f"{shown(p.first.path)} ~ {shown(p.second.path)}" for p in near),
        )


def _imbalance(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    counts = dataset.n_by_class
    ratio = max(counts) / max(min(counts), 1)
    if ratio > IMBALANCED:
        large, small = int(np.argmax(counts)), int(np.argmin(counts))
        yield Finding(
            "TL006",
            "tip",
            f"the largest class is {ratio:.0f} times the smallest",
            f"{dataset.classes[large]} has {counts[large]}, {dataset.classes[small]} {counts[small]}: "
            "accuracy says little about the small classes.",
            "Judge by the mean of the classes' accuracies; add images to small classes.",
            (dataset.classes[large], dataset.classes[small]),
        )


def _small_classes(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    by_size = sorted(zip(dataset.n_by_class, dataset.classes, strict=True))
    small = [(n, name) for n, name in by_size if 0 < n < FEW]
    if small:
        n_tiny = sum(n < TOO_FEW for n, _ in small)
        yield Finding(
            "TL007",
            "issue" if n_tiny else "tip",
            f"{len(small)} of {dataset.n_classes} classes have under {FEW} images",
            f"{n_tiny} of them have under {TOO_FEW}. The smallest, {small[0][1]!r}, has "
            f"{small[0][0]}: its accuracy is all but unknown.",
            "Add images to the smallest classes first, or merge them.",
            examples(f"{name}: {n}" for n, name in small),
        )


def _empty_classes(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    empty = [s for s in dataset.skipped if s.reason.startswith("a class without")]
    absent = [
        dataset.classes[i]
        for i in np.flatnonzero(
            np.bincount(labels_of(dataset.fit_split), minlength=dataset.n_classes) == 0
        )
    ]
    if dataset.n_classes < 2:
        yield Finding(
            "TL008",
            "issue",
            f"{count(dataset.n_classes, 'class', 'classes')} only",
            "There is nothing to tell apart.",
            "Give at least two folders of images.",
            dataset.classes,
        )
    elif empty or absent:
        names = [shown(s.path.name) for s in empty] + absent
        yield Finding(
            "TL008",
            "issue",
            f"{count(len(names), 'class', 'classes')} without a readable image",
            "They cannot be learnt and are left out.",
            "Add images or remove the folders.",
            examples(names),
        )


def _label_noise(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    if measured.scores is None:
        return
    labels = labels_of(measured.images)
    found = suspect_labels(measured.scores, labels)
    if found.n_confident < max(MIN_DOUBTED, MIN_DOUBTED_SHARE * len(labels)):
        return
    suspects = found.order[: min(found.n_confident, MAX_SUSPECTS)]
    yield Finding(
        "TL009",
        "issue" if found.n_confident >= 5 * MIN_DOUBTED_SHARE * len(labels) else "tip",
        f"{count(found.n_confident, 'label')} in doubt",
        f"For {100 * found.n_confident / len(labels):.1f}% of the images, a classifier that "
        f"never saw them finds another class over {CONFIDENT:.0f} times as probable.",
        "Look at them, most suspicious first, and correct the labels that are wrong.",
        tuple(
            f"{shown(measured.images[row].path)}: {dataset.classes[labels[row]]}, rather "
            f"{dataset.classes[found.likelier[row]]}"
            for row in suspects
        ),
    )


def _names_alike(dataset: Dataset, measured: ProbeEvidence) -> Iterator[Finding]:
    if dataset.alike:
        yield Finding(
            "TL016",
            "issue",
            f"{count(len(dataset.alike), 'pair')} of class names that differ only in spelling",
            "In one split they count as two classes; between splits, as one.",
            "Rename or merge the folders.",
            examples(f"{a!r} and {b!r}" for a, b in dataset.alike),
        )


_RULES: tuple[Rule, ...] = (
    _quarantined,
    _copies_within_a_class,
    _one_image_two_labels,
    _leaks,
    _near_duplicates,
    _imbalance,
    _small_classes,
    _empty_classes,
    _label_noise,
    *IMAGE_RULES,
    _names_alike,
)
