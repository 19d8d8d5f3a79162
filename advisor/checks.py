"""check(): coded findings about the data, the domain and the transfer, each with an action."""

from collections.abc import Callable, Iterator

from advisor.types import Finding, Profile
from strategies.core.task import ImageTask

FEW_PICTURES = 20
IMBALANCED = 5.0


def check(task: ImageTask, profile: Profile) -> tuple[Finding, ...]:
    """Return what a careful colleague would remark, in the order of the codes."""
    return tuple(finding for rule in _RULES for finding in rule(task, profile))


def _quarantined(task: ImageTask, profile: Profile) -> Iterator[Finding]:
    if task.skipped:
        yield Finding(
            "TL001",
            "issue",
            f"{len(task.skipped)} files were left out",
            f"The first: {task.skipped[0].path.name!r}: {task.skipped[0].reason}.",
            "Look at the list of quarantined files; repair or remove them.",
        )


def _small_classes(task: ImageTask, profile: Profile) -> Iterator[Finding]:
    small = {name: n for name, n in profile.n_by_class.items() if n < FEW_PICTURES}
    if small:
        name = min(small, key=lambda k: small[k])
        yield Finding(
            "TL007",
            "tip",
            f"{len(small)} of {profile.n_classes} classes have under {FEW_PICTURES} pictures",
            f"The smallest, {name!r}, has {small[name]}; accuracies are uncertain.",
            "Add pictures to the smallest classes first.",
        )


def _imbalance(task: ImageTask, profile: Profile) -> Iterator[Finding]:
    if profile.imbalance > IMBALANCED:
        yield Finding(
            "TL006",
            "tip",
            f"the largest class is {profile.imbalance:.0f} times the smallest",
            "Accuracy then says little about the small classes.",
            "Judge by the mean of the classes' accuracies; add pictures to small classes.",
        )


def _no_better_than_guessing(task: ImageTask, profile: Profile) -> Iterator[Finding]:
    accuracy = profile.linear_probe.accuracy
    if accuracy.low <= profile.majority_share:
        yield Finding(
            "TL201",
            "issue",
            "the pretrained features say nothing about these labels",
            f"A linear probe reaches {accuracy.percent()}; always naming the largest class "
            f"reaches {100 * profile.majority_share:.1f}%.",
            "Check the labels; if they are right, compare with from_scratch.",
        )


Rule = Callable[[ImageTask, Profile], Iterator[Finding]]

_RULES: tuple[Rule, ...] = (
    _quarantined,
    _imbalance,
    _small_classes,
    _no_better_than_guessing,
)
