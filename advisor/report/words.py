"""Text fragments shared by the terminal, Markdown and HTML reports."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from advisor.types.advice import MAX_BREAK_EVEN_N_PER_CLASS, Advice, Finding, TransferRisk
from advisor.types.durations import duration, time_limit
from advisor.types.outcome import Outcome, TransferGain, TransferVerdict
from advisor.types.profile import Profile
from advisor.types.similarity import IMAGENET, BackboneStatistics, DomainSimilarity
from strategies.core.metrics import Interval

VERDICTS: Mapping[TransferVerdict, str] = {
    "positive": "positive transfer",
    "none": "no transfer gain",
    "negative": "negative transfer",
    "unclear": "inconclusive",
    "undetermined": "not determined",
}
"""Verdicts on the transfer gain, for people."""
DISPLAY = "shown only, decides nothing"
"""What the transferability scores LogME and H-score are for."""
_METRICS = {"logme": "LogME", "h_score": "H-score"}
_MAIN = ("strength", "depth", "views", "frozen_stages", "lr", "steps")


def title(strategy: str) -> str:
    """Return the display name of a strategy: ``"Linear probe"``.

    It is made from the name: a report that is printed from the cache must not import the
    strategies, and with them torch. A test compares it with the strategies' own titles.
    """
    words = strategy.replace("_", " ").replace("fine tune", "fine-tune").capitalize()
    words = re.sub(r"tune\b", "tuning", words).replace("svm", "SVM")
    return words.replace("Lora", "LoRA")


def metric_name(name: str) -> str:
    """Return the display name of a transferability score: ``"H-score"``."""
    return _METRICS.get(name, name)


def with_titles(text: str) -> str:
    """Replace identifiers such as ``full_fine_tune`` in sentences by display names."""

    def display(name: re.Match[str]) -> str:
        words, before = title(name[0]), text[: name.start()]
        begins_sentence = not before or before.endswith(". ")
        return words if begins_sentence else words[0].lower() + words[1:]

    return re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", display, text)


def limit_words(advice: Advice) -> str | None:
    """Say for which time the advice is; None if there is no limit."""
    if advice.time_s is None:
        return None
    limit = time_limit(advice.time_s)
    if advice.best.seconds.mid > advice.time_s:
        return f"The fit is not expected to end within the limit of {limit}."
    return f"The advice is for a fit of at most {limit}."


def final_fit_words(outcome: Outcome) -> str | None:
    """Describe what the best classifier was fitted to, if that is not just the train images.

    More train images than the advice measured are named too.
    """
    part, n_train = outcome.best.n_train, outcome.n_train
    if part is not None:
        return f"fitted to a part of the images ({part} of {n_train}), as time was too short"
    words = ["refitted on train and validation together"] if outcome.refitted else []
    if n_train > outcome.advice.profile.n_train:
        words.append(f"learnt from {n_train:,} train images, of which the advice measured a part")
    return "; ".join(words) or None


def soup_words(outcome: Outcome) -> str | None:
    """Describe the model soup in a sentence; None where no soup was tried."""
    soup = outcome.soup
    if soup is None:
        return None
    numbers = [str(n) for n in soup.trials]
    trials = f"{', '.join(numbers[:-1])} and {numbers[-1]}"
    if soup.kept and soup.val_accuracy is not None:
        return (
            f"The classifier is a model soup, the averaged weights of trials {trials}: "
            f"validation accuracy {soup.val_accuracy.percent()} (used for selection), against "
            f"{soup.alone.percent()} of the best trial alone."
        )
    return f"A model soup of trials {trials} was not used: {soup.reason}."


def size_line(advice: Advice, with_split: bool = True) -> str:
    """Return the number of images and classes, and how the dataset is split."""
    profile = advice.profile
    size = (
        f"{profile.n:,} images of {profile.n_classes} classes ({profile.n_per_class:.0f} per "
        "class)"
    )
    return f"{size}; {advice.split}" if with_split else f"{size}; {advice.n_test:,} test images"


def transfer_words(found: TransferGain) -> str:
    """Describe the transfer gain of a run: gain, control and verdict."""
    verdict = VERDICTS[found.verdict]
    if found.verdict == "undetermined":
        return f"{verdict}: the control ({found.control}) did not beat the majority class"
    return f"{found.gain.points()} over {found.control}: {verdict}"


def risk_words(advice: Advice) -> str | None:
    """List the probability of negative transfer by strategy; None where it was not predicted."""
    if not advice.risks:
        return None
    return ", ".join(f"{r.strategy} {100 * r.probability:.0f}%" for r in advice.risks)


def break_even_words(risk: TransferRisk) -> str:
    """Describe the break-even size with training from scratch; empty where there is none."""
    found = risk.break_even_n_per_class
    if found is None:
        return ""
    high = (
        f"{found.high:,.0f}"
        if found.high < MAX_BREAK_EVEN_N_PER_CLASS
        else f"over {MAX_BREAK_EVEN_N_PER_CLASS:,}"
    )
    return (
        f"; break-even with from_scratch at about {found.mid:,.0f} images per class "
        f"[{found.low:,.0f}, {high}]"
    )


def similarity_words(similarity: DomainSimilarity) -> str:
    """Describe the domain similarity to ImageNet, and the landmark datasets it lies between."""
    near, far = similarity.between
    between = [f"at most that of {near}" if near else "", f"above that of {far}" if far else ""]
    where = " and ".join(b for b in between if b)
    return f"similarity {similarity.score.text('.2f')}" + (f"; {where}" if where else "")


def baseline_words(advice: Advice) -> str:
    """Say which order of the compared backbones the baseline gives, and what it lacks."""
    by_size = sorted(advice.backbones, key=lambda b: b.size_rank)
    listed = ", ".join(f"{b.name} ({b.params_m:.1f}M parameters)" for b in by_size)
    return (
        f"Baseline, the larger first: {listed}. Research finds it hard to beat. It usually ranks "
        "by accuracy on ImageNet as well, which timm's package does not contain."
    )


def pretraining_words(profile: Profile) -> str | None:
    """Say what the backbone was pretrained on, if that is not ImageNet; None otherwise."""
    domain = profile.pretrained_on
    if domain is None or domain == IMAGENET:
        return None
    return f"similarity is measured to ImageNet; {profile.backbone} was pretrained on {domain}"


def statistics_words(
    statistics: BackboneStatistics | None,
) -> tuple[tuple[str, str, str], ...]:
    """Return name, value and details of every statistic of the backbone's own layers and head."""
    if statistics is None:
        return ()
    shift, kernel, head = statistics.shift_nats, statistics.kernel_distance, statistics.head
    rows = []
    if shift is not None:
        details = f"{_range(shift)}; from {statistics.reference}"
        rows.append(("BatchNorm shift", f"{shift.mid:.3f} nats", details))
    if kernel is not None:
        chance = "" if statistics.p_value is None else f", p = {statistics.p_value:.3f}"
        details = f"{_range(kernel)}{chance}; from {statistics.reference}"
        rows.append(("kernel distance", f"{kernel.mid:.3f}", details))
    if head is not None:
        rows.append(("source-head entropy", f"{head.entropy.mid:.3f} nats", _range(head.entropy)))
        source = head.source_confident_share
        there = "" if source is None else f"; {100 * source:.0f}% on {statistics.reference}"
        share = head.confident_share
        rows.append(("confident predictions", share.percent(), "source head" + there))
        rows.append(("LEEP", f"{head.leep.mid:.3f} nats", f"{_range(head.leep)}; at most 0"))
    return tuple(rows)


def _range(interval: Interval) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


def settings(hyperparameters: Mapping[str, Any]) -> str:
    """Format the main hyperparameters: ``"lr 0.003, steps 300"``."""
    main = ((k, v) for k, v in hyperparameters.items() if k in _MAIN and v is not None)
    return ", ".join(pairs(main)) or "defaults"


def pairs(items: Iterable[tuple[str, object]]) -> list[str]:
    """Format names with values; floats with two significant digits."""
    return [f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in items]


def border_words(advice: Advice) -> str | None:
    """Name the candidate rules of a dataset near a quadrant threshold; otherwise None."""
    if not advice.quadrant.borderline:
        return None
    rules = " or ".join(advice.quadrant.candidates)
    return f"The dataset is close to a quadrant threshold; the rule of thumb is {rules}."


def no_cases_words(advice: Advice) -> str | None:
    """Say which strategies have no benchmark cases; None if all have."""
    names = [r.strategy for r in advice.recommendations if not r.cases]
    if not names:
        return None
    return (
        f"No benchmark cases: {', '.join(names)}. Their expected accuracy is a wide assumption; "
        "they are ranked after the others."
    )


def void_words(finding: Finding) -> tuple[str, ...]:
    """Return what is wrong, what to do first, and that nothing holds before, a sentence each."""
    return (
        finding.detail,
        f"First: {finding.action}",
        f"Nothing below holds before that (tl-advise --explain {finding.code}).",
    )


def why(advice: Advice) -> tuple[str, ...]:
    """Return why the first strategy is recommended, and when the runner-up would win."""
    best = advice.best
    expect = (
        f"Expected accuracy {best.accuracy.percent()}; one fit takes about "
        f"{duration(best.seconds.mid)}{needs_words(advice)}."
    )
    second = runner_up(advice)
    lines = (
        expect,
        limit_words(advice),
        *best.reasons,
        border_words(advice),
        None if second is None else f"Runner-up: {second}",
    )
    return tuple(line for line in lines if line is not None)


def needs_words(advice: Advice) -> str:
    """Say what memory a fit needs, and how much the accelerator has; empty if not predicted."""
    peak, total = advice.best.peak_bytes, advice.device_bytes
    if peak is None:
        return ""
    of_all = "of memory" if total is None else f"of {_gigabytes(total)}"
    return f" and needs about {_gigabytes(peak)} {of_all}"


def _gigabytes(n_bytes: int) -> str:
    """Return bytes in GB, with a decimal below 10 GB."""
    gigabytes = n_bytes / 1e9
    return f"{max(gigabytes, 0.1):.1f} GB" if gigabytes < 10 else f"{gigabytes:.0f} GB"


def runner_up(advice: Advice) -> str | None:
    """Describe the runner-up and when it would win; None where there is one strategy."""
    if len(advice.recommendations) < 2:
        return None
    best, second = advice.recommendations[:2]
    reason = f"{second.strategy}. {second.reasons[-1]}"
    gap = 100 * (second.accuracy.high - best.accuracy.mid)
    if gap <= 0:
        return f"{reason} Even at its upper bound it stays below {best.strategy}."
    return f"{reason} At its upper bound it would win by {gap:.1f} points."
