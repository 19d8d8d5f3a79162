"""Rules of the data findings TL001 to TL009 and TL016.

TL010 to TL015 are in `images`, TL017 to TL019 in `quality`.

They concern files, duplicates, leaks, classes and labels. Every rule uses what was measured
before; none opens a file.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from advisor.findings.images import IMAGE_RULES
from advisor.findings.quality import QUALITY_RULES
from advisor.findings.rule import (
    VOID_CONTRADICTIONS,
    VOID_LEAK,
    Rule,
    affected,
    closest_partners,
    count,
    examples,
    pair_lines,
)
from advisor.findings.statistics import CONFIDENT, suspect_labels
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import AffectedImage, Finding
from strategies.data.dataset import Dataset
from strategies.data.image import labels_of, shown
from strategies.data.near_duplicates import CERTAIN

MAX_SUSPECTS = 50
IMBALANCED = 5.0
TOO_FEW, FEW = 5, 20
SERIOUS_LEAK = 0.01
MIN_SUSPECTS, MIN_SUSPECT_SHARE = 3, 0.01
_SPLIT_TITLES = {"val": "validation"}


def check_data(dataset: Dataset, evidence: ProbeEvidence) -> tuple[Finding, ...]:
    """Return the findings about a dataset's images and labels, in the order of their codes.

    The test split may be absent: leaks are already stored in the dataset, and no other rule needs
    test labels.
    """
    return tuple(finding for rule in _RULES for finding in rule(dataset, evidence))


def _quarantined(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    if not dataset.skipped:
        return
    reasons = Counter(s.reason for s in dataset.skipped).most_common(3)
    yield Finding(
        "TL001",
        "issue",
        f"{count(len(dataset.skipped), 'file')} quarantined",
        "; ".join(f"{n:,} x {reason}" for reason, n in reasons) + ".",
        "Check the list of quarantined files; repair or remove them. No file was changed.",
        examples(f"{shown(s.path)}: {s.reason}" for s in dataset.skipped),
        affected=tuple(AffectedImage(s.path) for s in dataset.skipped),
    )


def _copies_within_a_class(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    pairs = [p for p in dataset.pairs if p.exact and p.first.label == p.second.label]
    if pairs:
        copies = tuple(affected(dataset, p.second, p.first, p.similarity) for p in pairs)
        yield Finding(
            "TL002",
            "tip",
            f"{count(len(pairs), 'exact copy', 'exact copies')} within a class",
            "Byte-identical files under several names get more weight than other images.",
            "Keep one of each. A split made by this program never separates copies.",
            pair_lines(copies, "="),
            affected=copies,
        )


def _one_image_two_labels(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    pairs = [
        p
        for p in dataset.pairs
        if p.first.label != p.second.label
        and not p.mirrored  # mirrored, a sign that points left may rightly be another class
        and (p.exact or p.similarity >= CERTAIN)
    ]
    if pairs:
        n_exact = sum(p.exact for p in pairs)
        involved = closest_partners(dataset, pairs)
        n = len(dataset.fit_split) + len(dataset.test or ())
        yield Finding(
            "TL003",
            "issue",
            f"{count(len(pairs), 'pair')} of identical or nearly identical images with different "
            "labels",
            f"Byte-identical: {n_exact:,}; nearly identical: {len(pairs) - n_exact:,}. In each "
            "pair, one of the two labels is wrong, or the classes overlap.",
            "Decide on one label for each image and remove the other copy.",
            pair_lines(involved, "=", labels=True),
            voids_advice=len(involved) >= VOID_CONTRADICTIONS * n,
            affected=involved,
        )


def _leaks(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    for leak in dataset.leaks:
        share = (leak.n_exact + leak.n_near) / leak.n
        split, source = (_SPLIT_TITLES.get(s, s) for s in (leak.split, leak.source))
        images = tuple(AffectedImage(path, twin) for path, twin in leak.pairs)
        yield Finding(
            "TL004",
            "issue" if share >= SERIOUS_LEAK else "tip",
            f"{100 * share:.1f}% of the {split} images also occur in {source}",
            f"{count(leak.n_exact, 'exact copy', 'exact copies')} and "
            f"{count(leak.n_near, 'near-duplicate')} among {count(leak.n, 'image')}: accuracy on "
            f"{split} is partly memorisation.",
            f"Remove them from {source}, or let the program make the split: it keeps "
            "duplicates together.",
            pair_lines(images, "="),
            voids_advice=leak.n_exact + leak.n_near / 2 >= VOID_LEAK * leak.n,
            affected=images,
        )


def _near_duplicates(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    near = [p for p in dataset.pairs if not p.exact and not p.is_grouped]
    if near:
        involved = closest_partners(dataset, near)
        yield Finding(
            "TL005",
            "tip",
            f"{count(len(involved), 'image')} with a near-duplicate",
            "Near-duplicates differ by little more than encoding, size, a small rotation, a crop "
            "or mirroring; they add little information.",
            "Nothing to do if this program made the split: it keeps near-duplicates together. "
            "Otherwise group them with --group-by.",
            pair_lines(involved, "~"),
            affected=involved,
        )


def _imbalance(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    counts = dataset.n_by_class
    ratio = max(counts) / max(min(counts), 1)
    if ratio > IMBALANCED:
        large, small = int(np.argmax(counts)), int(np.argmin(counts))
        yield Finding(
            "TL006",
            "tip",
            f"the largest class has {ratio:.0f} times as many images as the smallest",
            f"{dataset.classes[large]} has {count(counts[large], 'image')}, "
            f"{dataset.classes[small]} has {counts[small]:,}: overall accuracy says little about "
            "the small classes.",
            "Use the balanced accuracy (mean over classes); add images to small classes.",
            (dataset.classes[large], dataset.classes[small]),
        )


def _small_classes(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    by_size = sorted(zip(dataset.n_by_class, dataset.classes, strict=True))
    small = [(n, name) for n, name in by_size if 0 < n < FEW]
    if small:
        n_tiny = sum(n < TOO_FEW for n, _ in small)
        yield Finding(
            "TL007",
            "issue" if n_tiny else "tip",
            f"{len(small)} of {dataset.n_classes} classes {'has' if len(small) == 1 else 'have'} "
            f"fewer than {FEW} images",
            f"Classes with fewer than {TOO_FEW} images: {n_tiny}. The smallest, {small[0][1]!r}, "
            f"has {count(small[0][0], 'image')}: its accuracy is very uncertain.",
            "Add images to the smallest classes first, or merge them.",
            examples(f"{name}: {n}" for n, name in small),
        )


def _empty_classes(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
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
            f"only {count(dataset.n_classes, 'class', 'classes')}",
            "A classifier needs at least two classes.",
            "Provide at least two folders of images, one per class.",
            dataset.classes,
            voids_advice=True,
        )
    elif empty or absent:
        names = [shown(s.path.name) for s in empty] + absent
        yield Finding(
            "TL008",
            "issue",
            f"{count(len(names), 'class', 'classes')} without a readable image",
            "A class without images cannot be learned and is left out.",
            "Add images, or remove the class folder.",
            examples(names),
        )


def _label_noise(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    if evidence.scores is None:
        return
    labels = labels_of(evidence.images)
    found = suspect_labels(evidence.scores, labels)
    if found.n_confident < max(MIN_SUSPECTS, MIN_SUSPECT_SHARE * len(labels)):
        return
    suspects = tuple(
        AffectedImage(
            evidence.images[row].path,
            label=dataset.classes[labels[row]],
            suggested_label=dataset.classes[found.likelier[row]],
            score=float(found.probability[row]),
        )
        for row in found.order[: found.n_confident]
    )
    yield Finding(
        "TL009",
        "issue" if found.n_confident >= 5 * MIN_SUSPECT_SHARE * len(labels) else "tip",
        f"{count(found.n_confident, 'suspicious label')}",
        f"For {100 * found.n_confident / len(labels):.1f}% of the images, a cross-validated "
        f"classifier rates another class more than {CONFIDENT:.0f} times as probable as the "
        "label.",
        "Check them, most suspicious first, and correct the labels that are wrong.",
        tuple(
            f"{shown(s.path)}: labelled {s.label} but predicted {s.suggested_label}"
            for s in suspects[:MAX_SUSPECTS]
        ),
        affected=suspects,
    )


def _similar_names(dataset: Dataset, evidence: ProbeEvidence) -> Iterator[Finding]:
    if dataset.similar_class_names:
        yield Finding(
            "TL016",
            "issue",
            f"{count(len(dataset.similar_class_names), 'pair')} of class names that differ only "
            "in case or Unicode form",
            "Within a split they count as two classes; between splits they count as one.",
            "Rename or merge the class folders.",
            examples(f"{a!r} and {b!r}" for a, b in dataset.similar_class_names),
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
    _similar_names,
    *QUALITY_RULES,
)
