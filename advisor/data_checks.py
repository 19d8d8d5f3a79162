"""check_data(): coded findings TL001 to TL016 about the pictures and their labels.

Every rule is a function of what was measured while the pictures were read; none opens a file.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from advisor.doubts import (
    CONFIDENT,
    Shortcut,
    in_bins,
    predicts_label,
    suspect_labels,
    two_sample_test,
)
from advisor.types import Finding
from strategies.core.duplicates import CERTAIN, MIN_CONTRAST
from strategies.core.metrics import Scores
from strategies.core.pictures import Look, Picture, Split, labels_of, shown
from strategies.core.task import ImageTask

MAX_EXAMPLES, MAX_SUSPECTS = 5, 50
IMBALANCED = 5.0
TOO_FEW, FEW = 5, 20
SERIOUS_LEAK = 0.01
MIN_DOUBTED, MIN_DOUBTED_SHARE = 3, 0.01
TINY = 0.5
"""Pictures are tiny if their median short side is under this share of the network's input."""
GREY_SHARE = 0.99
EXTREME_ASPECT, EXTREME_SHARE = 2.0, 0.05
SHIFTED_AUC, SHIFTED_P = 0.65, 1e-3
SHORTCUT_P = 1e-6
SHORTCUT_LIFT = {"file format": 0.1, "resolution": 0.1, "colour": 0.1, "file size": 0.3}
"""Share of the way from chance to certainty that makes a shortcut. A file's size depends a little
on what is in the picture: more is asked of it."""


@dataclass(frozen=True)
class Measured:
    """What the findings rest on, besides the task.

    Attributes
    ----------
    pictures, scores
        Some pictures of train and val, and their calibrated out-of-fold scores (n, classes).
    train_features, test_features
        Penultimate activations of some pictures of both; labels are not needed.
    """

    input_px: int
    pictures: Split = ()
    scores: Scores | None = None
    train_features: Scores | None = None
    test_features: Scores | None = None
    seed: int = 0


def check_data(task: ImageTask, measured: Measured) -> tuple[Finding, ...]:
    """Return the findings about a task's data, in the order of their codes.

    The test split may be hidden: leaks are remembered, and nothing else here needs its labels.
    """
    return tuple(finding for rule in _RULES for finding in rule(task, measured))


def _quarantined(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    if not task.skipped:
        return
    reasons = Counter(s.reason for s in task.skipped).most_common(3)
    yield Finding(
        "TL001",
        "issue",
        f"{_count(len(task.skipped), 'file')} left out",
        "; ".join(f"{n} x {reason}" for reason, n in reasons) + ".",
        "Look at the list of quarantined files; mend or remove them. None was changed.",
        _examples(f"{shown(s.path)}: {s.reason}" for s in task.skipped),
    )


def _copies_within_a_class(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    pairs = [p for p in task.pairs if p.exact and p.first.label == p.second.label]
    if pairs:
        yield Finding(
            "TL002",
            "tip",
            f"{_count(len(pairs), 'exact copy', 'exact copies')} within a class",
            "The same bytes under several names weigh more than other pictures.",
            "Keep one of each. A split that is cut here never separates copies.",
            _examples(f"{shown(p.first.path)} = {shown(p.second.path)}" for p in pairs),
        )


def _one_picture_two_labels(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    pairs = [
        p
        for p in task.pairs
        if p.first.label != p.second.label and (p.exact or p.similarity >= CERTAIN)
    ]
    if pairs:
        n_exact = sum(p.exact for p in pairs)
        yield Finding(
            "TL003",
            "issue",
            f"{_count(len(pairs), 'picture')} under two labels",
            f"{n_exact} are the same byte by byte, the others very nearly so. One of the two "
            "labels is wrong, or the classes overlap.",
            "Decide on one label for each and remove the other copy.",
            _examples(
                f"{shown(p.first.path)} ({task.classes[p.first.label]}) = "
                f"{shown(p.second.path)} ({task.classes[p.second.label]})"
                for p in pairs
            ),
        )


def _leaks(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    for leak in task.leaks:
        share = (leak.n_exact + leak.n_near) / leak.n
        yield Finding(
            "TL004",
            "issue" if share >= SERIOUS_LEAK else "tip",
            f"{100 * share:.1f}% of {leak.split} occurs in {leak.source}",
            f"{leak.n_exact} exact copies and {leak.n_near} near-duplicates among {leak.n} "
            f"pictures: accuracy on {leak.split} is partly memory.",
            f"Remove them from {leak.source}, or let the program cut the split: it keeps "
            "duplicates together.",
            leak.examples,
        )


def _near_duplicates(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    near = [p for p in task.pairs if not p.exact]
    if near:
        involved = {id(p.first) for p in near} | {id(p.second) for p in near}
        yield Finding(
            "TL005",
            "tip",
            f"{_count(len(involved), 'picture')} with a near-duplicate",
            "They differ from another one by little more than encoding, size or a small turn; "
            "they add less than their number.",
            "Nothing, if the split was cut here: they were kept on one side. Otherwise group "
            "them with --group-by.",
            _examples(f"{shown(p.first.path)} ~ {shown(p.second.path)}" for p in near),
        )


def _imbalance(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    counts = task.n_by_class
    ratio = max(counts) / max(min(counts), 1)
    if ratio > IMBALANCED:
        large, small = int(np.argmax(counts)), int(np.argmin(counts))
        yield Finding(
            "TL006",
            "tip",
            f"the largest class is {ratio:.0f} times the smallest",
            f"{task.classes[large]} has {counts[large]}, {task.classes[small]} {counts[small]}: "
            "accuracy says little about the small classes.",
            "Judge by the mean of the classes' accuracies; add pictures to small classes.",
            (task.classes[large], task.classes[small]),
        )


def _small_classes(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    by_size = sorted(zip(task.n_by_class, task.classes, strict=True))
    small = [(n, name) for n, name in by_size if 0 < n < FEW]
    if small:
        n_tiny = sum(n < TOO_FEW for n, _ in small)
        yield Finding(
            "TL007",
            "issue" if n_tiny else "tip",
            f"{len(small)} of {task.n_classes} classes have under {FEW} pictures",
            f"{n_tiny} of them have under {TOO_FEW}. The smallest, {small[0][1]!r}, has "
            f"{small[0][0]}: its accuracy is all but unknown.",
            "Add pictures to the smallest classes first, or merge them.",
            _examples(f"{name}: {n}" for n, name in small),
        )


def _empty_classes(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    empty = [s for s in task.skipped if s.reason.startswith("a class without")]
    absent = [
        task.classes[i]
        for i in np.flatnonzero(
            np.bincount(labels_of(task.fit_split), minlength=task.n_classes) == 0
        )
    ]
    if task.n_classes < 2:
        yield Finding(
            "TL008",
            "issue",
            f"{_count(task.n_classes, 'class', 'classes')} only",
            "There is nothing to tell apart.",
            "Give at least two folders of pictures.",
            task.classes,
        )
    elif empty or absent:
        names = [shown(s.path.name) for s in empty] + absent
        yield Finding(
            "TL008",
            "issue",
            f"{_count(len(names), 'class', 'classes')} without a readable picture",
            "They cannot be learnt and are left out.",
            "Add pictures or remove the folders.",
            _examples(names),
        )


def _label_noise(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    if measured.scores is None:
        return
    labels = labels_of(measured.pictures)
    found = suspect_labels(measured.scores, labels)
    if found.n_confident < max(MIN_DOUBTED, MIN_DOUBTED_SHARE * len(labels)):
        return
    suspects = found.order[: min(found.n_confident, MAX_SUSPECTS)]
    yield Finding(
        "TL009",
        "issue" if found.n_confident >= 5 * MIN_DOUBTED_SHARE * len(labels) else "tip",
        f"{_count(found.n_confident, 'label')} in doubt",
        f"For {100 * found.n_confident / len(labels):.1f}% of the pictures, a classifier that "
        f"never saw them finds another class over {CONFIDENT:.0f} times as probable.",
        "Look at them, most suspicious first, and correct the labels that are wrong.",
        tuple(
            f"{shown(measured.pictures[row].path)}: {task.classes[labels[row]]}, rather "
            f"{task.classes[found.likelier[row]]}"
            for row in suspects
        ),
    )


def _tiny_pictures(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    sides = np.array([min(p.width_px, p.height_px) for p in task.fit_split])
    if len(sides) and np.median(sides) < TINY * measured.input_px:
        smallest = task.fit_split[int(sides.argmin())]
        yield Finding(
            "TL010",
            "tip",
            f"pictures of {np.median(sides):.0f} px for a network of {measured.input_px} px",
            "They are enlarged, which costs time and adds nothing.",
            f"Give larger pictures if there are any, or try --input-px "
            f"{max(32, 32 * round(measured.input_px / 64))}.",
            (f"{shown(smallest.path)}: {smallest.width_px} x {smallest.height_px}",),
        )


def _grey_only(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    looks = _looks(task.fit_split)
    if looks and np.mean([look.is_grey for _, look in looks]) >= GREY_SHARE:
        yield Finding(
            "TL011",
            "tip",
            "the pictures are grey",
            "The network was trained on colour; its colour features are idle here.",
            "Nothing, if they are grey by nature; otherwise give the originals.",
            _examples(shown(p.path) for p, look in looks if look.is_grey),
        )


def _extreme_aspects(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    split = task.fit_split
    ratio = np.array([max(p.width_px / p.height_px, p.height_px / p.width_px) for p in split])
    extreme = np.flatnonzero(ratio > EXTREME_ASPECT)
    if len(split) and len(extreme) >= max(1, EXTREME_SHARE * len(split)):
        worst = extreme[np.argsort(-ratio[extreme])]
        yield Finding(
            "TL012",
            "tip",
            f"{_count(len(extreme), 'picture')} more than twice as long as wide",
            "The network sees the central square; the ends are cut off.",
            "Crop them to what matters, or pad them to squares.",
            _examples(
                f"{shown(split[i].path)}: {split[i].width_px} x {split[i].height_px}"
                for i in worst
            ),
        )


def _blank_pictures(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    blank = [p for p, look in _looks(task.fit_split) if look.contrast < MIN_CONTRAST]
    if blank:
        yield Finding(
            "TL013",
            "issue",
            f"{_count(len(blank), 'blank picture')}",
            "They are of one colour throughout: nothing can be learnt from them.",
            "Remove them, or find out what made them.",
            _examples(f"{shown(p.path)} ({task.classes[p.label]})" for p in blank),
        )


def _shifted_test(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    if measured.train_features is None or measured.test_features is None:
        return
    test = two_sample_test(measured.train_features, measured.test_features, measured.seed)
    if test.auc >= SHIFTED_AUC and test.p_value < SHIFTED_P:
        yield Finding(
            "TL014",
            "issue",
            "test differs from train",
            f"A linear rule tells their features apart with an AUC of {test.auc:.2f} "
            "(0.5: not at all); accuracy on val will not carry over to test.",
            "Find out what differs (origin, share of the classes, camera), and whether later "
            "pictures will be like train or like test.",
        )


def _shortcuts(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    looks = _looks(task.fit_split)
    if len(looks) < FEW:
        return
    labels = labels_of(tuple(p for p, _ in looks))
    sizes = in_bins([look.n_bytes for _, look in looks])
    facts: dict[str, Sequence[object]] = {
        "file format": [(look.format, p.path.suffix.lower()) for p, look in looks],
        "resolution": [(p.width_px, p.height_px) for p, _ in looks],
        "colour": [look.is_grey for _, look in looks],
        "file size": sizes,
    }
    for name, values in facts.items():
        found = predicts_label(values, labels, measured.seed)
        if found.p_value < SHORTCUT_P and _lift(found) >= SHORTCUT_LIFT[name]:
            yield Finding(
                "TL015",
                "issue",
                f"the {name} tells the label",
                f"It alone names the class of {100 * found.accuracy:.0f}% of held-out pictures; "
                f"always naming the largest class, {100 * found.chance:.0f}%. A network may "
                "learn how the files were made instead of what they show.",
                "Bring all classes into the same form, from the same source.",
                _one_example_a_class(task, looks, values),
            )


def _lift(shortcut: Shortcut) -> float:
    return (shortcut.accuracy - shortcut.chance) / max(1 - shortcut.chance, 1e-9)


def _one_example_a_class(
    task: ImageTask, looks: Sequence[tuple[Picture, Look]], values: Sequence[object]
) -> tuple[str, ...]:
    """Show the commonest value of some classes."""
    shown_classes = []
    for label in range(min(task.n_classes, MAX_EXAMPLES)):
        rows = [i for i, (p, _) in enumerate(looks) if p.label == label]
        if rows:
            common = Counter(str(values[i]) for i in rows).most_common(1)[0][0]
            row = next(i for i in rows if str(values[i]) == common)
            picture, look = looks[row]
            shown_classes.append(
                f"{task.classes[label]}: {shown(picture.path)} ({look.format}, "
                f"{picture.width_px} x {picture.height_px}, {look.n_bytes:,} bytes)"
            )
    return tuple(shown_classes)


def _names_alike(task: ImageTask, measured: Measured) -> Iterator[Finding]:
    if task.alike:
        yield Finding(
            "TL016",
            "issue",
            f"{_count(len(task.alike), 'pair')} of class names that differ only in spelling",
            "In one split they count as two classes; between splits, as one.",
            "Rename or merge the folders.",
            _examples(f"{a!r} and {b!r}" for a, b in task.alike),
        )


def _looks(split: Split) -> tuple[tuple[Picture, Look], ...]:
    return tuple((p, p.look) for p in split if p.look is not None)


def _examples(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(lines)[:MAX_EXAMPLES]


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


Rule = Callable[[ImageTask, Measured], Iterator[Finding]]

_RULES: tuple[Rule, ...] = (
    _quarantined,
    _copies_within_a_class,
    _one_picture_two_labels,
    _leaks,
    _near_duplicates,
    _imbalance,
    _small_classes,
    _empty_classes,
    _label_noise,
    _tiny_pictures,
    _grey_only,
    _extreme_aspects,
    _blank_pictures,
    _shifted_test,
    _shortcuts,
    _names_alike,
)
