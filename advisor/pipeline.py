"""The program on one page: a folder of pictures to advice, and to a classifier."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from advisor.checks import check
from advisor.priors import load_priors
from advisor.profile import examine
from advisor.recommend import recommend
from advisor.reference import build_reference
from advisor.types import Advice, Choice
from strategies.core.backbone import CATALOGUE, DEFAULT_BACKBONE, Backbone, load_backbone
from strategies.core.features import extract_features
from strategies.core.run import OnProgress, RunContext, make_context
from strategies.core.task import MAX_IMAGES, MAX_QUARANTINE, ImageTask, Split, load_task
from strategies.registry import get_strategy

AUTO = "auto"
TINY_PX = 64
"""Pictures with a smaller median side gain nothing from the backbone's full input size."""
TINY_INPUT_PX = 128
MAX_COMPARED = 500
"""At most this many test pictures are compared with train."""


@dataclass(frozen=True)
class Options:
    """What both commands take; the defaults choose by themselves.

    Attributes
    ----------
    backbone, input_px, device, strategy
        "auto" or None: chosen here, printed with the reason.
    val, test
        Folders of class folders given apart from the data.
    cache_dir
        Where features are kept; None: the user's cache folder.
    root, group_by, max_images, max_quarantine
        How the data are read, see `load_task`.
    reference
        A folder of pictures like those that the backbone was pretrained with; None: what this
        program ships.
    """

    backbone: str = AUTO
    input_px: int | None = None
    strategy: str = AUTO
    val: Path | None = None
    test: Path | None = None
    seed: int = 0
    device: str = AUTO
    cache_dir: Path | None = None
    on_progress: OnProgress | None = field(default=None, compare=False)
    root: Path | None = None
    group_by: str | None = None
    max_images: int | None = MAX_IMAGES
    max_quarantine: float = MAX_QUARANTINE
    reference: Path | None = None


DEFAULTS = Options()


def advise(data: Path | str, options: Options = DEFAULTS) -> Advice:
    """Say which strategy suits a folder of labelled pictures, from measurements on them.

    Raises
    ------
    TransferError
        If the data, the backbone or a setting cannot be used; the message says what to do.
    """
    return advise_on(prepare(Path(data), options))


@dataclass(frozen=True)
class Prepared:
    """A task that was read, and what it is to be learnt with."""

    task: ImageTask
    backbone: Backbone
    choices: tuple[Choice, ...]
    options: Options
    ctx: RunContext


def prepare(data: Path, options: Options) -> Prepared:
    """Read a task and choose its backbone."""
    ctx = _context(options)
    task = _load(data, options, ctx)
    backbone, choices = _backbone(task, options)
    return Prepared(task, backbone, choices, options, ctx)


def advise_on(p: Prepared) -> Advice:
    """Advise on a task that was read; its test labels are hidden from what follows."""
    hidden, pictures = p.task.hide_test(), _unlabelled_test(p.task)
    return _advise(hidden, pictures, p.backbone, p.choices, p.options, p.ctx)


def _unlabelled_test(task: ImageTask) -> Split:
    """Return some pictures of a given test split, without labels, to compare with train.

    A test split that was cut off at random does not.
    """
    if not task.test or "test" not in task.listed:
        return ()
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(task.test))[:MAX_COMPARED]
    return tuple(replace(task.test[row], label=-1) for row in sorted(rows))


def _advise(
    task: ImageTask,
    test_pictures: Split,
    backbone: Backbone,
    choices: tuple[Choice, ...],
    options: Options,
    ctx: RunContext,
) -> Advice:
    start = time.monotonic()
    priors = load_priors()
    folder = options.reference
    own = None if folder is None else build_reference(folder, backbone, ctx)
    profile, measured = examine(task, backbone, ctx, own)
    if test_pictures:
        features = extract_features(test_pictures, backbone, ctx).pooled[-1]
        measured = replace(measured, test_features=features)
    forced = None if options.strategy == AUTO else options.strategy
    decision = recommend(profile, priors, forced)
    return Advice(
        task=task.name,
        data=task.root,
        recommendations=decision.recommendations,
        rejections=decision.rejections,
        quadrant=decision.quadrant,
        profile=profile,
        findings=check(task, profile, measured),
        quarantine=task.skipped,
        choices=(*choices, *_sample_choice(task, options), *_device_choice(options, ctx)),
        split=task.split_source,
        n_test=task.n_hidden,
        seed=options.seed,
        seconds=round(time.monotonic() - start, 3),
    )


def _context(options: Options) -> RunContext:
    if options.strategy != AUTO:
        get_strategy(options.strategy)
    given = {} if options.on_progress is None else {"on_progress": options.on_progress}
    return make_context(
        device=options.device, cache_dir=options.cache_dir, seed=options.seed, **given
    )


def _load(data: Path, options: Options, ctx: RunContext) -> ImageTask:
    return load_task(
        data,
        val=options.val,
        test=options.test,
        root=options.root,
        group_by=options.group_by,
        max_images=options.max_images,
        max_quarantine=options.max_quarantine,
        seed=options.seed,
        n_workers=ctx.n_workers,
    )


def _backbone(task: ImageTask, options: Options) -> tuple[Backbone, tuple[Choice, ...]]:
    """Choose the backbone and its input size, and say so."""
    name = DEFAULT_BACKBONE if options.backbone == AUTO else options.backbone
    choices = []
    if options.backbone == AUTO:
        choices.append(Choice("backbone", name, "embedded default; pin with --backbone"))
    px = options.input_px
    side = float(np.median([min(p.width_px, p.height_px) for p in task.train]))
    if px is None and side < TINY_PX:
        px = TINY_INPUT_PX
        why = f"the pictures' median side is {side:.0f} px; pin with --input-px"
        choices.append(Choice("input_px", str(px), why))
    backbone = load_backbone(name, input_px=px)
    if px is None:
        why = "what the backbone was trained with; pin with --input-px"
        choices.append(Choice("input_px", str(backbone.input_px), why))
    if name not in CATALOGUE:
        choices.append(Choice("weights' licence", backbone.licence, "stated by timm"))
    return backbone, tuple(choices)


def _sample_choice(task: ImageTask, options: Options) -> tuple[Choice, ...]:
    if not task.is_sampled:
        return ()
    why = "a stratified sample of a larger folder; all of it with --max-images 0"
    return (Choice("pictures", str(options.max_images), why),)


def _device_choice(options: Options, ctx: RunContext) -> tuple[Choice, ...]:
    if options.device != AUTO:
        return ()
    precision = str(ctx.precision).removeprefix("torch.")
    return (Choice("device", f"{ctx.device} ({precision})", "found here; pin with --device"),)
