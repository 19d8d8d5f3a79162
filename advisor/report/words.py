"""How the reports say things: shared by terminal, Markdown and page."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from advisor.types.advice import FARTHEST, Advice, TransferRisk
from advisor.types.outcome import Ended, Outcome, TransferGain
from advisor.types.similarity import DomainSimilarity
from strategies.core.metrics import Interval

ENDED: Mapping[Ended, str] = {
    "time": "when the time was used up",
    "trials": "when the trials asked for were done",
    "unbeatable": "early: nothing is left to try, even a trial without an error on validation would "
    "gain too little to count",
    "no_contender": "early: nothing is left to try, no training that may still win",
    "interrupted": "when it was interrupted",
}
"""Why a search was over, for people."""
_SHOWN = ("strength", "depth", "views", "frozen_stages", "lr", "steps")


def title(strategy: str) -> str:
    """Return a strategy's name for people: ``"Linear probe"``."""
    words = strategy.replace("_", " ").replace("fine tune", "fine-tuning").capitalize()
    return words.replace("svm", "SVM")


def spoken(text: str) -> str:
    """Return a sentence with the names of strategies and settings as people say them."""

    def say(name: re.Match[str]) -> str:
        said = title(name[0])
        return said[0].lower() + said[1:]

    return re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", say, text)


def duration(seconds: float) -> str:
    """Format seconds for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def headline(advice: Advice) -> str:
    """Return the answer in one line."""
    best = advice.best
    return (
        f"{best.strategy}: expect {best.accuracy.percent()} accuracy, "
        f"about {duration(best.seconds.mid)} to fit"
    )


def backbone_used(outcome: Outcome) -> str:
    """Return the backbone of the best trial: a run may find another better than its own."""
    return str(outcome.best.hyperparameters.get("backbone", outcome.advice.profile.backbone))


def winner(outcome: Outcome) -> str:
    """Return the best trial's strategy, and its backbone if that is another than was given."""
    used, strategy = backbone_used(outcome), outcome.best.strategy
    return strategy if used == outcome.advice.profile.backbone else f"{strategy} on {used}"


def result(outcome: Outcome) -> str:
    """Return what a run reached in one line."""
    test = outcome.test
    if test is None:
        return f"{winner(outcome)}: there are no test images to judge it on"
    images = "image" if test.n == 1 else "images"
    return f"{winner(outcome)}: {test.accuracy.percent()} on {test.n:,} test {images}"


def soup_words(outcome: Outcome) -> str | None:
    """Say in a sentence what came of averaging weights; None where nothing was to be averaged."""
    soup = outcome.soup
    if soup is None:
        return None
    numbers = [str(n) for n in soup.trials]
    trials = f"{', '.join(numbers[:-1])} and {numbers[-1]}"
    if soup.kept and soup.val_accuracy is not None:
        return (
            f"The classifier is the average of the weights of trials {trials}: "
            f"{soup.val_accuracy.percent()} on validation, which chose it, against "
            f"{soup.alone.percent()} of the best trial alone."
        )
    return f"The weights of trials {trials} averaged were not kept: {soup.reason}."


def size_line(advice: Advice) -> str:
    """Say how many images there are and how they are split."""
    profile = advice.profile
    return (
        f"{profile.n:,} images of {profile.n_classes} classes "
        f"({profile.n_per_class:.0f} per class); {advice.split}"
    )


def points(gain: Interval, unit: str = " points") -> str:
    """Format a difference of accuracies: ``"+1.2 points [-0.3, +2.8]"``."""
    return f"{100 * gain.mid:+.1f}{unit} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def transfer_words(found: TransferGain) -> str:
    """Say what pretraining brought to a run: against what, and what that allows to say."""
    if found.verdict == "untold":
        return f"untold: {found.control} learnt nothing in the time that it had"
    return f"{points(found.gain)} against {found.control}: {found.verdict}"


def risk_words(advice: Advice) -> str | None:
    """Say how likely each strategy does worse than the same network from random weights."""
    if not advice.risks:
        return None
    return ", ".join(f"{r.strategy} {100 * r.probability:.0f}%" for r in advice.risks)


def crossing_words(risk: TransferRisk) -> str:
    """Say from how many images per class on training from scratch does as well; else nothing."""
    found = risk.break_even_n_per_class
    if found is None:
        return ""
    high = f"{found.high:,.0f}" if found.high < FARTHEST else f"beyond {FARTHEST:,}"
    return (
        f"; from about {found.mid:,.0f} per class on scratch catches up [{found.low:,.0f}, {high}]"
    )


def similarity_words(similarity: DomainSimilarity | None) -> str:
    """Say how near to ImageNet the images are, and between which landmarks."""
    if similarity is None:
        return "unknown: this backbone has no BatchNorm statistics to compare with"
    near, far = similarity.between
    between = [f"as far as {near}" if near else "", f"nearer than {far}" if far else ""]
    where = " and ".join(b for b in between if b)
    s = similarity.score
    return f"similarity {s.mid:.2f} [{s.low:.2f}, {s.high:.2f}]" + (f"; {where}" if where else "")


def settings(hyperparameters: Mapping[str, Any]) -> str:
    """Name the hyperparameters that say most: ``"lr 0.003, steps 300"``."""
    told = ((k, v) for k, v in hyperparameters.items() if k in _SHOWN and v is not None)
    shown = ", ".join(pairs(told))
    return shown or "its defaults"


def pairs(items: Iterable[tuple[str, object]]) -> list[str]:
    """Format names with values, floats with two digits."""
    return [f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in items]


def border_words(advice: Advice) -> str | None:
    """Say which rules stand where the dataset lies near a border, else None."""
    if not advice.quadrant.borderline:
        return None
    rules = " or ".join(advice.quadrant.candidates)
    return f"The dataset lies near a border; the rule of thumb is {rules}."


def why(advice: Advice) -> tuple[str, ...]:
    """Say why the first strategy is advised, and when the second would win."""
    best = advice.best
    expect = (
        f"Expect {best.accuracy.percent()} accuracy after about "
        f"{duration(best.seconds.mid)} of fitting."
    )
    second = runner_up(advice)
    lines = (
        expect,
        *best.reasons,
        border_words(advice),
        None if second is None else f"Runner-up: {second}",
    )
    return tuple(line for line in lines if line is not None)


def runner_up(advice: Advice) -> str | None:
    """Name the second strategy and say when it would win; None where there is no second."""
    if len(advice.recommendations) < 2:
        return None
    best, second = advice.recommendations[:2]
    said = f"{second.strategy}. {second.reasons[-1]}"
    gap = 100 * (second.accuracy.high - best.accuracy.mid)
    if gap <= 0:
        return f"{said} Even at the top of its interval it stays below {best.strategy}."
    return f"{said} At the top of its interval it would win by {gap:.1f} points."
