"""The advisor: read a dataset, measure it, and recommend a transfer-learning strategy."""

import logging
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from advisor.decide.candidates import DecisionInputs, make_candidates
from advisor.decide.negative_transfer import transfer_risks
from advisor.decide.priors import load_priors
from advisor.decide.recommend import frontier_of, recommend
from advisor.findings.backbone_check import probe_alternative
from advisor.findings.check import check
from advisor.measure.backbone_comparison import compare_backbones, comparison_rationale
from advisor.measure.profile import measure, sample
from advisor.report.live.show import showing
from advisor.similarity.pretraining import pretraining_domain
from advisor.similarity.reference import build_reference
from advisor.types.advice import Advice, Choice, Decision
from advisor.types.flags import arguments
from advisor.types.options import AUTO, DEFAULTS, Options
from advisor.types.profile import BackboneScore, Profile
from strategies.core.allocator import total_bytes
from strategies.core.context import RunContext, make_context
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset, Split, load_dataset
from strategies.data.image import shown
from strategies.models.backbone import Backbone, load_backbone, sizes_of
from strategies.models.catalogue import CATALOGUE, DEFAULT_BACKBONE
from strategies.models.features import pooled_features
from strategies.registry import get_strategy

logger = logging.getLogger(__name__)

TINY_PX = 64
"""Below this median shorter side, images gain nothing from the backbone's full input size."""
TINY_INPUT_PX = 128
MAX_COMPARED = 500
"""Maximum number of test images that are compared with train."""
COMPARED = 1000
"""Approximate maximum number of images for comparing backbones."""


@dataclass(frozen=True)
class Prepared:
    """A loaded dataset with its backbone, options and context.

    Attributes
    ----------
    backbones
        Scores of the compared backbones, best first; empty if only one was given.
    choices
        What was chosen automatically so far.
    measured
        The images that the advice was measured on, if the dataset has more; None: they are the
        dataset.
    """

    dataset: Dataset
    backbone: Backbone
    backbones: tuple[BackboneScore, ...]
    choices: tuple[Choice, ...]
    options: Options
    ctx: RunContext
    measured: Dataset | None = None


def advise(
    data: Path | str,
    options: Options = DEFAULTS,
    *,
    time_s: float | None = None,
    show_progress: bool = False,
) -> Advice:
    """Recommend a transfer-learning strategy for a dataset of labelled images.

    Parameters
    ----------
    time_s
        Time for the recommended fit on this machine in seconds; None: no limit.
    show_progress
        Whether to show progress: bars on a terminal, text below the cell of a notebook.

    Raises
    ------
    TransferError
        If the dataset, the backbone or an option cannot be used; the message says what to do.
    """
    with showing(show_progress, options) as (shown_options, _):
        return advise_on(prepare(Path(data), shown_options), time_s)


def prepare(
    data: Path,
    options: Options,
    deadline_s: float | None = None,
    *,
    keep_rest: bool = False,
) -> Prepared:
    """Load a dataset, or a sample of a large one, and choose its backbone.

    Parameters
    ----------
    deadline_s
        ``time.monotonic()`` at which to stop measuring; None: no limit.
    keep_rest
        Whether the images outside the sample can be added later, see `dataset.extend`.
    """
    ctx = replace(_context(options), deadline_s=deadline_s)
    dataset = load_dataset(
        data,
        val=options.val,
        test=options.test,
        hold_out_test=options.hold_out_test,
        root=options.root,
        group_by=options.group_by,
        max_images=options.max_images,
        keep_rest=keep_rest,
        max_quarantine=options.max_quarantine,
        seed=options.seed,
        n_workers=ctx.n_workers,
        cache=ctx.cache,
        on_progress=ctx.reporter.on_progress,
    )
    ranked, backbone, choices = _backbone(dataset, options, ctx)
    return Prepared(dataset, backbone, ranked, choices, options, ctx)


def advise_on(
    p: Prepared, time_s: float | None = None, reserve_s: Callable[[Profile], float] | None = None
) -> Advice:
    """Recommend a strategy for a loaded dataset, without using its test labels.

    Parameters
    ----------
    time_s
        Time for the recommended fit on this machine in seconds; None: no limit.
    reserve_s
        Returns, for the measurements, the seconds before the deadline of the context that the fit
        may not use; None: the deadline is no limit for the fit.
    """
    start = time.monotonic()
    test_images = _unlabelled_test(p.dataset)
    p = replace(p, dataset=p.dataset.hide_test())
    dataset, backbone, options, ctx = p.dataset, p.backbone, p.options, p.ctx
    priors = load_priors()
    folder = options.reference
    reference = None if folder is None else build_reference(folder, backbone, ctx)
    ctx.reporter.on_progress("network", 1, 1)
    profile, measured = measure(dataset, backbone, ctx, reference)
    domain = pretraining_domain(backbone, options.pretrained_on)
    profile = replace(profile, pretrained_on=domain)
    ctx.reporter.on_progress("similarity", 1, 1)
    if test_images:
        features = pooled_features(test_images, backbone, ctx, [backbone.n_depths])
        measured = replace(measured, test_features=features)
    limit_s = _limit_s(time_s, None if reserve_s is None else reserve_s(profile), ctx)
    inputs, decision = _decide(profile, p, limit_s)
    alternative = probe_alternative(profile, dataset, backbone, priors, ctx)
    findings = check(dataset, inputs, measured, alternative)
    choices = _choices(p)
    ctx.reporter.on_progress("findings", 1, 1)
    for choice in choices:
        logger.info("chosen: %s is %s (%s)", choice.name, choice.value, choice.source)
    return Advice(
        dataset=dataset.name,
        data=dataset.root,
        recommendations=decision.recommendations,
        rejections=decision.rejections,
        quadrant=decision.quadrant,
        profile=profile,
        findings=findings,
        quarantine=dataset.skipped,
        choices=choices,
        split=dataset.split_source,
        n_test=dataset.n_hidden,
        seed=options.seed,
        seconds=round(time.monotonic() - start, 3),
        backbones=p.backbones,
        command=_command(dataset, backbone, options, time_s),
        risks=transfer_risks(inputs, priors),
        frontier=frontier_of(decision.options, inputs, priors, options.prefer),
        time_s=None if math.isinf(limit_s) else round(limit_s, 3),
        alternative=alternative,
        device_bytes=total_bytes(ctx.device),
    )


def _unlabelled_test(dataset: Dataset) -> Split:
    """Return a sample of the test images without labels, to compare them with train.

    Empty if the test split was cut at random: it cannot differ from train.
    """
    if not dataset.test or "test" not in dataset.listed:
        return ()
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(dataset.test))[:MAX_COMPARED]
    return tuple(replace(dataset.test[row], label=-1) for row in sorted(rows))


def _decide(profile: Profile, p: Prepared, limit_s: float) -> tuple[DecisionInputs, Decision]:
    """Return the inputs of the decision, and the decision."""
    options, priors = p.options, load_priors()
    forced = None if options.strategy == AUTO else options.strategy
    with p.ctx.cache.keep_open():
        candidates = make_candidates(profile, p.dataset, p.backbone, p.ctx)
    inputs = DecisionInputs(profile, candidates)
    decision = recommend(inputs, priors, forced, options.prefer, limit_s)
    options.on_ranking(decision.recommendations)
    return inputs, decision


def _limit_s(time_s: float | None, reserve_s: float | None, ctx: RunContext) -> float:
    """Return the seconds that the recommended fit may take; infinite without a limit."""
    limit_s = math.inf if time_s is None else time_s
    return limit_s if reserve_s is None else min(limit_s, max(ctx.seconds_left() - reserve_s, 0.0))


def _choices(p: Prepared) -> tuple[Choice, ...]:
    """Return everything that was chosen automatically."""
    return (
        *p.choices,
        *_sample_choice(p.dataset, p.options),
        *_preference_choice(p.options),
        *_device_choice(p.options, p.ctx),
    )


def _preference_choice(options: Options) -> tuple[Choice, ...]:
    if options.prefer != DEFAULTS.prefer:
        return ()
    why = "ties go to the cheaper strategy; pin with --prefer accuracy, balanced or cheap"
    return (Choice("prefer", options.prefer, why),)


def _context(options: Options) -> RunContext:
    if options.strategy != AUTO:
        get_strategy(options.strategy)
    return make_context(
        device=options.device,
        cache_dir=options.cache_dir,
        seed=options.seed,
        workers=options.workers,
        is_deterministic=options.deterministic,
        reporter=Reporter(options.on_progress, options.on_note),
    )


def _backbone(
    dataset: Dataset, options: Options, ctx: RunContext
) -> tuple[tuple[BackboneScore, ...], Backbone, tuple[Choice, ...]]:
    """Choose the backbone and its input size; compare the backbones if several are given."""
    requested = DEFAULT_BACKBONE if options.backbone == AUTO else options.backbone
    names = list(dict.fromkeys(name.strip() for name in requested.split(",")))
    choices = []
    if options.backbone == AUTO:
        choices.append(Choice("backbone", requested, "embedded default; pin with --backbone"))
    side = float(np.median([min(p.width_px, p.height_px) for p in dataset.train]))
    is_tiny = options.input_px is None and side < TINY_PX

    def load(name: str) -> Backbone:
        px = sizes_of(name).nearest(TINY_INPUT_PX) if is_tiny else options.input_px
        return load_backbone(name, input_px=px, on_progress=ctx.reporter.on_progress)

    candidates = {name: load(name) for name in names}
    ranked: tuple[BackboneScore, ...] = ()
    if len(candidates) > 1:
        images = sample(dataset.fit_split, ctx.seed, COMPARED)
        ranked = compare_backbones(tuple(candidates.values()), images, dataset.n_classes, ctx)
        names = [score.name for score in ranked]
        choices.append(Choice("backbone", names[0], comparison_rationale(ranked)))
    backbone = candidates[names[0]]
    if options.input_px is None:
        why = _size_reason(side, backbone) if is_tiny else "input size of the pretraining"
        choices.append(Choice("input_px", str(backbone.input_px), f"{why}; pin with --input-px"))
    if backbone.name not in CATALOGUE:
        choices.append(Choice("weights' licence", backbone.licence, "stated by timm"))
        choices += _pretraining_choice(backbone, options)
    return ranked, backbone, tuple(choices)


def _size_reason(side: float, backbone: Backbone) -> str:
    """Say why the input size was chosen for tiny images with this median side."""
    taken = f"; the network takes {backbone.capabilities.sizes}"
    return f"the images' median side is {side:.0f} px" + (
        "" if backbone.input_px == TINY_INPUT_PX else taken
    )


def _pretraining_choice(backbone: Backbone, options: Options) -> tuple[Choice, ...]:
    if options.pretrained_on is not None:
        return ()
    domain = pretraining_domain(backbone)
    why = "timm's tag of the weights" if domain else "timm's tag of the weights does not say it"
    return (Choice("pretrained_on", domain or "not known", f"{why}; pin with --pretrained-on"),)


def _command(dataset: Dataset, backbone: Backbone, options: Options, time_s: float | None) -> str:
    """Return the command that reproduces this advice, with every choice pinned."""
    pinned = replace(options, backbone=backbone.name, input_px=backbone.input_px)
    given = arguments(pinned, always=("backbone", "input_px", "seed"))
    words = [" ".join([flag, *(shlex.quote(shown(v)) for v in value)]) for flag, *value in given]
    words += [] if time_s is None else [f"--time {time_s:g}s"]
    return " ".join(["tl-advise", shlex.quote(shown(dataset.root)), *words])


def _sample_choice(dataset: Dataset, options: Options) -> tuple[Choice, ...]:
    if not dataset.is_sampled:
        return ()
    why = (
        "stratified sample for the advice, and tl-auto run learns from all images; measure all "
        "with --max-images 0"
    )
    return (Choice("images", str(options.max_images), why),)


def _device_choice(options: Options, ctx: RunContext) -> tuple[Choice, ...]:
    if options.device != AUTO:
        return ()
    precision = str(ctx.precision).removeprefix("torch.")
    return (Choice("device", f"{ctx.device} ({precision})", "detected; pin with --device"),)
