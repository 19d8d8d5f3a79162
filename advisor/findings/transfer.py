"""Rules of the transfer findings TL201 to TL209, such as negative transfer and its cause."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from advisor.decide.chance import is_at_chance
from advisor.decide.negative_transfer import CLEAR, better_earlier_depth, risk_of_harm
from advisor.decide.priors import Prior
from advisor.types.advice import Finding, TransferRisk
from advisor.types.profile import AlternativeBackbone, Profile
from strategies.registry import fits_head, get_strategy, reference_control

HARM = 0.38
"""A network that does worse than one with random weights is reported from this probability on."""
RISKY = 0.3
"""A strategy that may lose to training from scratch is reported from this probability on: about
the smallest one with 4% false alarms on left-out datasets (`benchmarks/transfer_risk.py`)."""
NO_GAIN_BELOW = 0.05
"""There is no transfer gain if its interval contains 0 and ends below this."""
UNRELATED = 0.15
"""The dataset is unrelated to pretraining below this share of explained label entropy."""
BN_SHIFT_NATS, SIMILAR = 0.2, 0.5
"""BatchNorm statistics do not fit from this shift on, if the similarity is below this value."""
GAIN_STEP = 0.02
"""Gain in accuracy for which the number of additional images is reported."""


@dataclass(frozen=True)
class TransferContext:
    """Inputs of the transfer rules besides the profile.

    Attributes
    ----------
    prior
        Prior of the accuracy that pretrained features gain over random ones.
    risks
        Of negative transfer, one for each strategy.
    alternative
        Linear probe of another backbone on the same images; None if it was not measured.
    no_signal
        Whether no measurement predicts the labels (`lacks_signal`).
    """

    prior: Prior
    risks: tuple[TransferRisk, ...] = ()
    alternative: AlternativeBackbone | None = None
    no_signal: bool = False


Rule = Callable[[Profile, TransferContext], Iterator[Finding]]


def check_transfer(profile: Profile, context: TransferContext) -> tuple[Finding, ...]:
    """Return the findings about transfer, in the order of their codes.

    Where no measurement predicts the labels, the rules that compare accuracies are left out.
    """
    rules = _RULES_WITHOUT_SIGNAL if _nothing_can_be_learned(context) else _RULES
    return tuple(finding for rule in rules for finding in rule(profile, context))


def _nothing_can_be_learned(context: TransferContext) -> bool:
    """Return whether neither this backbone nor the other one predicts the labels."""
    return context.no_signal and _use_alternative(context) is None


def _at_chance(profile: Profile, context: TransferContext) -> Iterator[Finding]:
    accuracy = profile.linear_probe.accuracy
    if _nothing_can_be_learned(context):
        yield Finding(
            "TL201",
            "issue",
            "nothing can be learned from these labels",
            f"No measurement is above chance ({100 * profile.majority_share:.1f}%, always "
            f"predicting the largest class): a linear probe reaches {accuracy.percent()} on "
            f"{profile.n_measured:,} images, the best SVM over all depths "
            f"{profile.best_svm.accuracy.percent()}.",
            "Compare the labels of some images with what the images show; a shifted list or "
            "shuffled folders look like this.",
            voids_advice=True,
        )
    elif is_at_chance(profile):
        yield Finding(
            "TL201",
            "issue",
            "the pretrained features do not predict these labels",
            f"A linear probe reaches {accuracy.percent()}; always predicting the largest class "
            f"reaches {100 * profile.majority_share:.1f}%.",
            _use_alternative(context)
            or f"Check the labels; if they are right, compare with {reference_control().name}.",
        )


def _no_transfer_gain(profile: Profile, context: TransferContext) -> Iterator[Finding]:
    gain = profile.transfer_gain
    if gain is None:
        return
    risk = risk_of_harm(gain, context.prior)
    no_benefit = gain.low <= 0 and gain.high < NO_GAIN_BELOW
    if risk < HARM and not no_benefit:
        return
    yield Finding(
        "TL202",
        "issue" if risk >= HARM else "tip",
        "negative transfer: pretrained features may be worse than random ones"
        if risk >= HARM
        else "pretrained features are hardly better than random ones",
        f"Transfer gain (accuracy at the best depth minus that with random weights): "
        f"{gain.points()}; the probability of negative transfer is {100 * risk:.0f}%. "
        f"Cause: {_cause(profile, context)}.",
        _use_alternative(context)
        or "Do not rely on a linear probe. tl-auto run also tries fine-tuning with "
        "reinitialised last stages, and training from scratch. Or compare other backbones "
        "(--backbone a,b).",
    )


def _cause(profile: Profile, context: TransferContext) -> str:
    """Return the most likely cause of harm; a measured one takes precedence."""
    alternative, similarity = context.alternative, profile.similarity.score
    if alternative is not None and alternative.lead.low > 0:
        return (
            f"the backbone itself, as {alternative.name} is better by "
            f"{alternative.lead.points()} on the same images"
        )
    if similarity.high < SIMILAR:
        return f"the domain is too far from ImageNet (similarity {similarity.mid:.2f})"
    related = relatedness(profile)
    if related is not None and related < UNRELATED:
        return "the dataset is unrelated to the classes of pretraining"
    if alternative is not None:
        return f"not known; not this backbone alone, as {alternative.name} is not clearly better"
    return (
        "not known, as neither the domain nor the classes are clearly far from ImageNet; perhaps "
        "the backbone itself"
    )


def _use_alternative(context: TransferContext) -> str | None:
    """Return the action where another backbone was measured to be better, else None."""
    alternative = context.alternative
    if alternative is None or alternative.lead.low <= 0:
        return None
    return f"Use the other backbone: --backbone {alternative.name}."


def _late_features_too_specialised(profile: Profile, _: TransferContext) -> Iterator[Finding]:
    found = better_earlier_depth(profile)
    if found is None:
        return
    best, last = found
    yield Finding(
        "TL203",
        "tip",
        "late features are too specialised for these images",
        f"A linear SVM reaches {best.accuracy.percent()} at depth {best.depth} "
        f"({profile.depth_names[best.depth - 1]}) and {last.accuracy.percent()} at the last one.",
        f"Use {fits_head('squared_hinge').name} at depth {best.depth}, or fine-tune only the "
        f"stages after it (frozen_stages {best.depth}).",
    )


def relatedness(profile: Profile) -> float | None:
    """Return the share of the labels' entropy explained by the pretrained head, at most 1.

    From LEEP; None if it was not measured. Optimistic if there are few images per predicted
    ImageNet class.
    """
    statistics = profile.backbone_statistics
    if statistics is None or statistics.head is None:
        return None
    shares = [n / profile.n for n in profile.n_by_class.values() if n]
    entropy = -sum(s * math.log(s) for s in shares)
    return 1 + statistics.head.leep.mid / entropy if entropy > 0 else None


def _unrelated_dataset(profile: Profile, _: TransferContext) -> Iterator[Finding]:
    related = relatedness(profile)
    if related is None or related >= UNRELATED:
        return
    yield Finding(
        "TL204",
        "tip",
        "the dataset has little in common with the classes of pretraining",
        f"The pretrained head's predictions explain {100 * max(related, 0):.0f}% of the labels' "
        "entropy.",
        "Expect more from fine-tuning than from a linear probe; let tl-auto run compare both.",
    )


def _bn_statistics_do_not_fit(profile: Profile, _: TransferContext) -> Iterator[Finding]:
    statistics = profile.backbone_statistics
    if statistics is None or profile.similarity.score.high >= SIMILAR:
        return
    shifts = [(s.low, d + 1) for d, s in enumerate(statistics.per_depth) if s is not None]
    if not shifts or max(shifts)[0] < BN_SHIFT_NATS:
        return
    depth = max(shifts)[1]
    shift = statistics.per_depth[depth - 1]
    assert shift is not None
    yield Finding(
        "TL205",
        "tip",
        "the BatchNorm statistics do not fit these images",
        f"At depth {depth} ({profile.depth_names[depth - 1]}), activations are {shift.mid:.2f} "
        f"nats [{shift.low:.2f}, {shift.high:.2f}] from {statistics.reference}.",
        "When fine-tuning, re-estimate the statistics on these images (batch_norm=reestimated) or "
        "update them during training (batch_norm=trained); tl-auto run tries both.",
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
        f"raw pixels predict the classes {how} the last features",
        f"A linear classifier on small grey thumbnails reaches {pixels.percent()}, a linear probe "
        f"on the network's last features {probe.percent()}.",
        "If position or brightness should not determine the class, look for a shortcut "
        "(background, framing, exposure); if they should, fine-tune the network or use an earlier "
        "depth.",
    )


def _more_images(profile: Profile, _: TransferContext) -> Iterator[Finding]:
    """Report how many more images the learning curve asks for, if its gain is significant."""
    if profile.curve is None or not profile.curve.extrapolated:
        return
    have, now = profile.curve.measured[-1]
    for at, then in profile.curve.extrapolated:
        gain = then.mid - now.mid
        if gain < GAIN_STEP or then.low <= now.mid:
            continue
        more = math.ceil((at - have) * GAIN_STEP / gain)
        yield Finding(
            "TL207",
            "tip",
            "more images would help",
            f"About {more:,} more {'image' if more == 1 else 'images'} per class would raise the "
            f"linear probe's accuracy by {100 * GAIN_STEP:.0f} points; with {at:,.0f} training "
            f"images per class it would reach {then.percent()}.",
            "Collect or label more images, starting with the smallest classes.",
        )
        return


def _scratch_may_win(profile: Profile, context: TransferContext) -> Iterator[Finding]:
    """Report the strategies that may lose to training from scratch; fine-tuning may be spared."""
    harmed = [r for r in context.risks if r.probability >= RISKY]
    if not harmed:
        return
    spared = [r for r in context.risks if r.probability < RISKY and _is_trained(r)]
    all_lose = len(harmed) == len(context.risks)
    named = ", ".join(f"{r.strategy} {100 * r.probability:.0f}%" for r in harmed)
    others = ", ".join(f"{r.strategy} {100 * r.probability:.0f}%" for r in spared)
    best = min(spared, key=lambda r: r.probability, default=None)
    action = (
        "Do not rely on the pretrained weights yet: tl-auto run also tries "
        f"{reference_control().name}, and fine-tuning that departs from them (blend 1, "
        "reinitialised last stages)."
        if best is None
        else f"Fine-tune instead of probing: {best.strategy} starts from the same weights and is "
        "expected to gain from them."
    )
    yield Finding(
        "TL208",
        "issue" if all_lose else "tip",
        "negative transfer: training from scratch may do better"
        + ("" if all_lose else f" than {' and '.join(r.strategy for r in harmed)}"),
        f"Probability that the same network trained from scratch does better, by strategy: {named}"
        + (f"; lower for {others}" if others else "")
        + f". Cause: {_cause(profile, context)}.",
        _use_alternative(context) or action,
    )


def _other_backbone_is_better(profile: Profile, context: TransferContext) -> Iterator[Finding]:
    alternative = context.alternative
    if alternative is None or alternative.lead.low <= CLEAR:
        return
    yield Finding(
        "TL209",
        "issue",
        f"another backbone is clearly better: {alternative.name}",
        f"A linear probe on {alternative.name} reaches {alternative.accuracy.percent()} on the "
        f"same images, {alternative.lead.points()} relative to {profile.backbone}.",
        f"Use it: --backbone {alternative.name}; tl-auto run also tries it.",
    )


def _is_trained(risk: TransferRisk) -> bool:
    return get_strategy(risk.strategy).trains_network


_RULES: tuple[Rule, ...] = (
    _at_chance,
    _no_transfer_gain,
    _late_features_too_specialised,
    _unrelated_dataset,
    _bn_statistics_do_not_fit,
    _pixels_do_as_well,
    _more_images,
    _scratch_may_win,
    _other_backbone_is_better,
)
_RULES_WITHOUT_SIGNAL: tuple[Rule, ...] = (_at_chance, _bn_statistics_do_not_fit)
