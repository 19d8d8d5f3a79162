"""TL201 to TL209: whether transfer helps here, where it stops helping, and what to do."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from advisor.decide.negative_transfer import (
    CLEAR,
    PROBES,
    better_depth,
    is_at_chance,
    risk_of_harm,
)
from advisor.decide.priors import Prior
from advisor.types.advice import Finding, TransferRisk
from advisor.types.profile import Profile
from strategies.core.metrics import Interval

HARM = 0.38
"""From this probability on, negative transfer is warned of."""
NARROW = 0.05
"""A gain is as good as none if its interval contains 0 and ends below this."""
UNRELATED = 0.15
"""Below this share of the labels' entropy the old head says nothing of them."""
FOREIGN_NATS, TYPICAL = 0.2, 0.5
"""BatchNorm statistics are foreign above this shift, where the domain is not similar anyway."""
WORTH = 0.02


@dataclass(frozen=True)
class TransferContext:
    """What is known beside the profile.

    Attributes
    ----------
    usual
        What pretrained features usually gain over random ones, in accuracy.
    risks
        Of negative transfer, by strategy.
    """

    prior: Prior
    risks: tuple[TransferRisk, ...] = ()


Rule = Callable[[Profile, TransferContext], Iterator[Finding]]


def check_transfer(profile: Profile, known: TransferContext) -> tuple[Finding, ...]:
    """Return the findings about transfer, in the order of their codes."""
    return tuple(finding for rule in _RULES for finding in rule(profile, known))


def _no_better_than_guessing(profile: Profile, _: TransferContext) -> Iterator[Finding]:
    accuracy = profile.linear_probe.accuracy
    if is_at_chance(profile):
        yield Finding(
            "TL201",
            "issue",
            "the pretrained features say nothing about these labels",
            f"A linear probe reaches {accuracy.percent()}; always naming the largest class "
            f"reaches {100 * profile.majority_share:.1f}%.",
            _instead(profile) or "Check the labels; if they are right, compare with from_scratch.",
        )


def _random_weights_do_as_well(profile: Profile, known: TransferContext) -> Iterator[Finding]:
    gain = profile.transfer_gain
    if gain is None:
        return
    risk = risk_of_harm(gain, known.prior)
    no_benefit = gain.low <= 0 and gain.high < NARROW
    if risk < HARM and not no_benefit:
        return
    yield Finding(
        "TL202",
        "issue" if risk >= HARM else "tip",
        "negative transfer: frozen features may do worse than random ones"
        if risk >= HARM
        else "frozen features do no better than random ones",
        f"Accuracy at the best depth minus that of the same network with random weights: "
        f"{_points(gain)}; the chance that the features harm is {100 * risk:.0f}%. "
        f"Cause: {_cause(profile)}.",
        _instead(profile)
        or "Do not rely on a probe. tl-auto run tries fine-tuning with new last stages and "
        "training from scratch beside it; or compare other backbones (--backbone a,b).",
    )


def _cause(profile: Profile) -> str:
    """Name what most likely makes the features useless; what was measured goes first."""
    alternative, similarity = profile.alternative, profile.similarity
    if alternative is not None and alternative.lead.low > 0:
        return (
            f"the backbone itself, as {alternative.name} does better by {_points(alternative.lead)} on the "
            "same images"
        )
    if similarity is not None and similarity.score.high < TYPICAL:
        return f"the domain is too far from ImageNet (similarity {similarity.score.mid:.2f})"
    related = relatedness(profile)
    if related is not None and related < UNRELATED:
        return "the dataset is unrelated to what the network was trained for"
    if alternative is not None:
        return f"not known; it is not this backbone alone, as {alternative.name} is not clearly better"
    return "not known, as neither the domain nor the dataset is far; perhaps the backbone itself"


def _instead(profile: Profile) -> str | None:
    """Say what to use where another backbone was found to be better."""
    alternative = profile.alternative
    if alternative is None or alternative.lead.low <= 0:
        return None
    return f"Use the other backbone: --backbone {alternative.name}."


def _late_features_are_too_special(profile: Profile, _: TransferContext) -> Iterator[Finding]:
    found = better_depth(profile)
    if found is None:
        return
    best, last = found
    yield Finding(
        "TL203",
        "tip",
        "late features are too special for these images",
        f"A linear SVM reaches {best.accuracy.percent()} at depth {best.depth} "
        f"({profile.depth_names[best.depth - 1]}) and {last.accuracy.percent()} at the last.",
        f"Use layer_svm at depth {best.depth}, or train the stages behind it "
        f"(partial_fine_tune with frozen_stages {best.depth}).",
    )


def relatedness(profile: Profile) -> float | None:
    """Return the share of the labels' entropy that the old head's predictions remove, at most 1.

    From LEEP; optimistic where there are few images for the old classes in use.
    """
    similarity = profile.similarity
    if similarity is None or similarity.evidence is None:
        return None
    shares = [n / profile.n for n in profile.n_by_class.values() if n]
    entropy = -sum(s * math.log(s) for s in shares)
    return 1 + similarity.evidence.leep.mid / entropy if entropy > 0 else None


def _unrelated_dataset(profile: Profile, _: TransferContext) -> Iterator[Finding]:
    related, similarity = relatedness(profile), profile.similarity
    if related is None or similarity is None or related >= UNRELATED:
        return
    yield Finding(
        "TL204",
        "tip",
        "the dataset has little to do with what the network was trained for",
        f"What its old head calls the images tells {100 * max(related, 0):.0f}% of what there "
        "is to know of the labels.",
        "Expect more from training than from a probe; let tl-auto compare both.",
    )


def _foreign_statistics(profile: Profile, _: TransferContext) -> Iterator[Finding]:
    similarity = profile.similarity
    if similarity is None or similarity.score.high >= TYPICAL:
        return
    shifts = [(s.low, d + 1) for d, s in enumerate(similarity.per_depth) if s is not None]
    if not shifts or max(shifts)[0] < FOREIGN_NATS:
        return
    depth = max(shifts)[1]
    shift = similarity.per_depth[depth - 1]
    assert shift is not None
    yield Finding(
        "TL205",
        "tip",
        "BatchNorm's statistics do not fit these images",
        f"At depth {depth} ({profile.depth_names[depth - 1]}) activations are {shift.mid:.2f} "
        f"nats [{shift.low:.2f}, {shift.high:.2f}] away from those of pretraining.",
        "When training, take them again from these images (batch_norm=reestimated) or let them "
        "be learnt (trained); tl-auto run tries both.",
    )


def _pixels_do_as_well(profile: Profile, _: TransferContext) -> Iterator[Finding]:
    pixels, probe = profile.pixel_probe, profile.linear_probe.accuracy
    if pixels is None or pixels.low <= profile.majority_share:
        return
    if pixels.mid < probe.mid or pixels.high < probe.high:
        return
    worse = pixels.low > probe.high
    how = "better than" if worse else "as well as"
    yield Finding(
        "TL206",
        "issue" if worse else "tip",
        f"raw pixels tell the classes {how} the last features",
        f"A linear rule on small grey thumbnails reaches {pixels.percent()}, a probe on the "
        f"network's last features {probe.percent()}.",
        "If place or brightness should not tell the classes, look for a shortcut (background, "
        "framing, exposure); if they should, train the network or use an earlier depth.",
    )


def _more_images(profile: Profile, _: TransferContext) -> Iterator[Finding]:
    """Tell what more images would buy, where the curve is sure that they would."""
    if profile.curve is None or not profile.curve.extrapolated:
        return
    have, now = profile.curve.measured[-1]
    for at, then in profile.curve.extrapolated:
        gain = then.mid - now.mid
        if gain < WORTH or then.low <= now.mid:
            continue
        more = math.ceil((at - have) * WORTH / gain)
        yield Finding(
            "TL207",
            "tip",
            "more images would help",
            f"About {more:,} more per class would buy the probe {100 * WORTH:.0f} points; with "
            f"{at:,.0f} per class to learn from it would reach {then.percent()}.",
            "Collect or label more, first of the classes with the fewest.",
        )
        return


def _scratch_may_win(profile: Profile, known: TransferContext) -> Iterator[Finding]:
    """Warn by strategy: a probe can lose to training from scratch where fine-tuning does not."""
    harmed = [r for r in known.risks if r.probability >= HARM]
    if not harmed:
        return
    spared = [r for r in known.risks if r.probability < HARM and r.strategy not in PROBES]
    all_lose = len(harmed) == len(known.risks)
    named = ", ".join(f"{r.strategy} {100 * r.probability:.0f}%" for r in harmed)
    others = ", ".join(f"{r.strategy} {100 * r.probability:.0f}%" for r in spared)
    best = min(spared, key=lambda r: r.probability, default=None)
    action = (
        "Do not trust the pretrained weights yet: tl-auto run lets from_scratch compete, and "
        "fine-tuning that lets go of them (blend 1, new last stages)."
        if best is None
        else f"Train rather than probe: {best.strategy} starts from the same weights and is "
        "expected to gain by them."
    )
    yield Finding(
        "TL208",
        "issue" if all_lose else "tip",
        "negative transfer: training from scratch may do better"
        + ("" if all_lose else f" than {' and '.join(r.strategy for r in harmed)}"),
        f"Chance that the same network from random weights does better: {named}"
        + (f"; not so for {others}" if others else "")
        + f". Cause: {_cause(profile)}.",
        _instead(profile) or action,
    )


def _backbone_is_harmful(profile: Profile, _: TransferContext) -> Iterator[Finding]:
    alternative = profile.alternative
    if alternative is None or alternative.lead.low <= CLEAR:
        return
    yield Finding(
        "TL209",
        "issue",
        f"the backbone is a likely cause: {alternative.name} does better",
        f"A linear probe on {alternative.name} reaches {alternative.accuracy.percent()} on the same "
        f"images, {_points(alternative.lead)} against {profile.backbone}.",
        f"Use it: --backbone {alternative.name}; tl-auto run tries it beside this one.",
    )


def _points(gain: Interval) -> str:
    return f"{100 * gain.mid:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


_RULES: tuple[Rule, ...] = (
    _no_better_than_guessing,
    _random_weights_do_as_well,
    _late_features_are_too_special,
    _unrelated_dataset,
    _foreign_statistics,
    _pixels_do_as_well,
    _more_images,
    _scratch_may_win,
    _backbone_is_harmful,
)
