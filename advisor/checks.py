"""check(): coded findings about the data, the domain and the transfer, each with an action."""

from collections.abc import Callable, Iterator

from advisor.data_checks import check_data
from advisor.evidence import Measured
from advisor.types import Finding, Profile
from strategies.core.task import ImageTask


def check(task: ImageTask, profile: Profile, measured: Measured) -> tuple[Finding, ...]:
    """Return what a careful colleague would remark, in the order of the codes."""
    transfer = tuple(finding for rule in _RULES for finding in rule(task, profile))
    return check_data(task, measured) + transfer


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

_RULES: tuple[Rule, ...] = (_no_better_than_guessing,)
