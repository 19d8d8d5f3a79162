"""Advice and outcome in a few lines of text: the headline of every report, and `repr`."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from advisor.types.durations import duration, time_limit

if TYPE_CHECKING:
    from advisor.types.advice import Advice
    from advisor.types.outcome import Ended, Outcome

ENDED: "Mapping[Ended, str]" = {
    "time": "time budget used up",
    "trials": "maximum number of trials reached",
    "unbeatable": "early: a trial without validation errors would not be a relevant improvement",
    "no_candidate": "early: no strategy is left that may still win",
    "interrupted": "interrupted by the user",
}
"""Why a search ended, for people."""
MAX_ISSUES = 3
"""Issues that `repr` names."""


def headline(advice: "Advice") -> str:
    """Return the recommendation in one line, or why there is none and what to do first."""
    best, void = advice.best, advice.void
    if void is not None:
        return f"{void.title}; first: {void.action}"
    limit = "" if advice.time_s is None else f" (limit {time_limit(advice.time_s)})"
    return (
        f"{best.strategy}: expected accuracy {best.accuracy.percent()}, "
        f"about {duration(best.seconds.mid)} for one fit{limit}"
    )


def backbone_used(outcome: "Outcome") -> str:
    """Return the backbone of the best trial, which may differ from the advised one."""
    return str(outcome.best.hyperparameters.get("backbone", outcome.advice.profile.backbone))


def winner(outcome: "Outcome") -> str:
    """Return the strategy of the best trial, and its backbone if it is not the advised one."""
    used, strategy = backbone_used(outcome), outcome.best.strategy
    return strategy if used == outcome.advice.profile.backbone else f"{strategy} on {used}"


def result(outcome: "Outcome") -> str:
    """Return the result of a run in one line."""
    test = outcome.test
    if test is None:
        return f"{winner(outcome)}: not evaluated, there are no test images"
    images = "image" if test.n == 1 else "images"
    return f"{winner(outcome)}: {test.accuracy.percent()} accuracy on {test.n:,} test {images}"


def advice_text(advice: "Advice") -> str:
    """Return the recommendation, the runner-up and the findings in at most four lines."""
    return "\n  ".join([f"Advice for {advice.dataset}: {headline(advice)}", *_beside(advice)])


def _beside(advice: "Advice") -> Iterator[str]:
    """Yield runner-up, issues and limits of an advice, a line each."""
    if len(advice.recommendations) > 1 and advice.void is None:
        second = advice.recommendations[1]
        yield (
            f"runner-up: {second.strategy}: {second.accuracy.percent()}, about "
            f"{duration(second.seconds.mid)}"
        )
    issues = [f for f in advice.findings if f.severity == "issue"]
    named = [f"{f.code} {f.title}" for f in issues[:MAX_ISSUES]]
    if len(issues) > MAX_ISSUES:
        named.append(f"{len(issues) - MAX_ISSUES} more")
    yield f"issues: {'; '.join(named) or 'none'}"
    yield f"{advice.profile.n:,} images of {advice.profile.n_classes} classes; seed {advice.seed}"


def outcome_text(outcome: "Outcome") -> str:
    """Return the result of a run, its validation accuracy and its cost in at most five lines."""
    return "\n  ".join(
        [f"Outcome for {outcome.advice.dataset}: {result(outcome)}", *_below(outcome)]
    )


def _below(outcome: "Outcome") -> Iterator[str]:
    """Yield doubt, validation, end and folder of a run, a line each."""
    void, score = outcome.advice.void, outcome.best.val_accuracy
    if void is not None:
        yield f"caution: {void.title}"
    n = len(outcome.trials)
    trials = f"{n} trial{'' if n == 1 else 's'}"
    if score is not None:
        yield f"validation accuracy {score.percent()}, the best of {trials}"
    yield f"{duration(outcome.seconds)}; search ended: {ENDED[outcome.ended]}"
    yield f"folder: {outcome.folder}"
