"""Options of ``tl-advise`` and ``tl-auto``, and tolerances within which accuracies are tied.

Each option is declared once, with its default, flag, help and bounds; see `advisor.types.flags`.
This module imports no deep-learning library, so that ``--help`` is fast.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from advisor.types.flags import Flag, check_values
from strategies.core.errors import TransferError
from strategies.core.limits import MAX_IMAGES, MAX_QUARANTINE
from strategies.core.progress import OnNote, OnProgress, ignore

AUTO = "auto"
Prefer = Literal["accuracy", "balanced", "cheap"]
SuspiciousLabels = Literal["keep", "drop", "relabel"]
"""What `clean_manifest` does with images of suspicious labels (TL009)."""
NOISE: Mapping[Prefer, float] = {"accuracy": 0.0, "balanced": 0.005, "cheap": 0.03}
"""Accuracies that differ by at most this much count as equal; the cheaper strategy then wins."""
TIE_FULL_ERROR_RATE = 0.05
"""Below this error rate, `NOISE` shrinks in proportion to the error rate: half a percentage point
is a tenth of the errors at 95% accuracy, and would be all of them at 99.5%."""
SIMILAR_COST_RATIO = 2.0
"""Costs that differ by at most this factor count as equal; the more accurate one then wins."""


def tie_tolerance(accuracy: float, prefer: Prefer) -> float:
    """Return how far below this accuracy another may be and still count as a tie."""
    return NOISE[prefer] * min(1.0, (1 - accuracy) / TIE_FULL_ERROR_RATE)


def tie_upper_bound(accuracy: float, prefer: Prefer) -> float:
    """Return the highest accuracy with which this one still counts as tied.

    The largest u with ``u - tie_tolerance(u, prefer) <= accuracy``.
    """
    per_error = NOISE[prefer] / TIE_FULL_ERROR_RATE
    return min(accuracy + NOISE[prefer], (accuracy + per_error) / (1 + per_error))


DeviceName = Annotated[
    str, Flag("auto, cpu, cuda, cuda:N or mps.", panel="Machine", is_local=True)
]
Workers = Annotated[
    int | None,
    Flag(
        "Threads that read images; default: one per CPU core.",
        panel="Machine",
        min=1,
        is_local=True,
        is_neutral=True,
    ),
]
CacheDir = Annotated[
    Path | None,
    Flag("Folder of the feature cache.", panel="Machine", is_local=True, is_neutral=True),
]


OnRanking = Callable[[Sequence[Any]], None]
"""Called with recommendations (`advisor.types.advice.Recommendation`), the best one first."""


@dataclass(frozen=True)
class Options:
    """Options of both commands; by default everything is chosen automatically.

    Attributes
    ----------
    backbone, input_px, device, strategy
        "auto" or None: chosen automatically and printed with the reason. Several backbones,
        separated by commas, are compared and the best one is used.
    val, test
        Folders with one folder per class, for validation or test images outside the data folder.
    hold_out_test
        Whether a fifth of the images is split off as test where the data contain no test images.
        If not, all images are learnt from, and the accuracy on new images is not measured.
    workers
        Threads that read images while the network computes; None: one per core. The result does
        not depend on it.
    deterministic
        Whether the same training run gives the same weights on CUDA too. On a CPU it always does.
    cache_dir
        Where features are cached; None: the user's cache folder.
    root, group_by, max_quarantine
        How the data are read, see `load_dataset`.
    max_images
        Size of the sample of every split that the advice is measured on; None: no sample, all
        images. A run learns from all images in any case.
    reference
        Folder of images like those that the backbone was pretrained on, for the statistics of its
        own layers; None: the reference that this program ships.
    pretrained_on
        What the backbone was pretrained on; None: what timm's tag of the weights says.
    prefer
        How much more accurate a strategy must be to be preferred over a cheaper one, see
        `recommend`.
    on_progress
        Callback for progress.
    on_note
        Called with a message for the user, for example when a training run deviates from its
        plan.
    on_ranking
        Called as soon as the strategies can be ranked. Findings follow, and may make the advice
        void.
    """

    backbone: Annotated[
        str,
        Flag(
            "timm model name, hf-hub:..., local-dir:..., or auto. Several, separated by commas, "
            "are compared.",
            panel="Backbone",
        ),
    ] = AUTO
    input_px: Annotated[
        int | None,
        Flag("Input resolution: side of the network's input.", panel="Backbone", min=16),
    ] = None
    strategy: Annotated[str, Flag("Name of the strategy to use, or auto.", panel="Decision")] = (
        AUTO
    )
    val: Annotated[Path | None, Flag("Separate folder of validation images.", panel="Data")] = None
    test: Annotated[Path | None, Flag("Separate folder of test images.", panel="Data")] = None
    hold_out_test: Annotated[
        bool,
        Flag("Split off a fifth of the images as test where the data contain none.", panel="Data"),
    ] = True
    device: DeviceName = AUTO
    workers: Workers = None
    deterministic: Annotated[
        bool,
        Flag(
            "Same results in every run on a GPU too, which takes longer.",
            panel="Machine",
            is_local=True,
        ),
    ] = False
    cache_dir: CacheDir = None
    root: Annotated[
        Path | None, Flag("Folder that a manifest's relative paths start from.", panel="Data")
    ] = None
    group_by: Annotated[
        str | None,
        Flag(
            "Regular expression on paths: images with the same match stay in the same split and "
            "fold; none: no grouping.",
            panel="Data",
        ),
    ] = None
    max_images: Annotated[
        int | None,
        Flag(
            "Maximum number of images per split that the advice is measured on; 0: all. tl-auto "
            "run learns from all images in any case, as far as time allows.",
            panel="Data",
            min=0,
            zero_is_none=True,
        ),
    ] = MAX_IMAGES
    max_quarantine: Annotated[
        float, Flag("Maximum share of unreadable images.", panel="Data", min=0, max=1)
    ] = MAX_QUARANTINE
    reference: Annotated[
        Path | None,
        Flag("Folder of images from the backbone's pretraining domain.", panel="Backbone"),
    ] = None
    pretrained_on: Annotated[
        str | None,
        Flag(
            "What the backbone was pretrained on, e.g. laion2b; default: timm's tag says it.",
            panel="Backbone",
        ),
    ] = None
    prefer: Annotated[
        Prefer, Flag("Trade-off between accuracy and training cost.", panel="Decision")
    ] = "balanced"
    seed: Annotated[
        int, Flag("Random seed of splits, folds and training.", panel="Decision", min=0)
    ] = 0
    on_progress: OnProgress = field(default=ignore, compare=False)
    on_note: OnNote = field(default=ignore, compare=False)
    on_ranking: OnRanking = field(default=ignore, compare=False)

    def __post_init__(self) -> None:
        """Check choices and bounds, and that no option is without effect."""
        check_values(self)
        if self.test is not None and not self.hold_out_test:
            raise TransferError(
                f"--test {self.test} and --no-hold-out-test cannot be used together. Test images "
                "were given; leave one of the two out."
            )


DEFAULTS = Options()


@dataclass(frozen=True)
class RunOptions:
    """Options that only ``tl-auto run`` takes.

    Attributes
    ----------
    time_s, max_trials
        Limits: seconds for everything (measuring, tuning, evaluating, saving), and trials.
    control
        Whether the best trial is compared with a control without pretrained weights.
    soup
        Whether the weights of the best training runs are averaged at the end.
    advised_only
        Whether only the recommended strategy is tuned. The advice is then for the time of the run,
        also where `max_trials` is given.
    report
        Whether the report is written as an HTML page.
    ray
        Whether trials run on Ray, started on this machine.
    ray_address
        Address of a Ray cluster that trials run on.
    gpus
        Most GPUs that Ray uses at a time; None: all.
    storage_path
        Folder that the driver and all nodes of a cluster see; None: the run folder.
    gpus_per_trial
        GPUs that a training run uses, each for its share of every batch.
    fixed_hyperparameters
        Hyperparameters of the forced strategy (`Options.strategy`) that have these values in every
        trial of it; the others are searched. None: all are searched.
    """

    time_s: Annotated[
        float,
        Flag(
            "Time limit of the whole command: 90s, 10m, 2h.",
            panel="Budget",
            name="--time",
            is_duration=True,
        ),
    ] = 600.0
    max_trials: Annotated[
        int | None, Flag("Maximum number of trials.", panel="Budget", name="--trials", min=1)
    ] = None
    control: Annotated[
        bool,
        Flag(
            "Use a tenth of the time for a random-init control, to measure the transfer gain.",
            panel="Decision",
        ),
    ] = True
    soup: Annotated[
        bool,
        Flag(
            "Average the weights of the best trials (model soup); keep the average if it scores "
            "better on validation.",
            panel="Decision",
        ),
    ] = True
    advised_only: Annotated[
        bool, Flag("Tune the recommended strategy alone.", panel="Decision")
    ] = False
    report: Annotated[
        bool, Flag("Write report.html, the report with charts and images.", panel="Output")
    ] = True
    ray: Annotated[
        bool,
        Flag("Run trials in parallel on this machine's GPUs, with Ray.", panel="Machine"),
    ] = False
    ray_address: Annotated[
        str | None,
        Flag(
            "Run trials on the Ray cluster at this address: HOST:6379, or auto.", panel="Machine"
        ),
    ] = None
    gpus: Annotated[
        int | None, Flag("Most GPUs that Ray uses; default: all.", panel="Machine", min=1)
    ] = None
    storage_path: Annotated[
        Path | None,
        Flag(
            "Folder that this process and all nodes of the Ray cluster see, for checkpoints; "
            "default: the run folder.",
            panel="Machine",
        ),
    ] = None
    gpus_per_trial: Annotated[
        int, Flag("GPUs that share every batch of a training run.", panel="Machine", min=1)
    ] = 1
    fixed_hyperparameters: Annotated[
        Mapping[str, Any] | None,
        Flag(
            "Fix a hyperparameter of the strategy that --strategy names, e.g. lr=3e-4; the others "
            "are searched. May be repeated.",
            name="--set",
            panel="Decision",
        ),
    ] = None

    def __post_init__(self) -> None:
        """Check bounds, and that no option is without effect."""
        check_values(self)
        for name in ("gpus", "storage_path"):
            if getattr(self, name) is not None and not self.uses_ray:
                flag = "--" + name.replace("_", "-")
                raise TransferError(f"{flag} has an effect only with --ray or --ray-address.")
        if self.gpus is not None and self.gpus < self.gpus_per_trial:
            raise TransferError(
                f"--gpus {self.gpus} is less than --gpus-per-trial {self.gpus_per_trial}."
            )
        if self.ray and self.ray_address is not None:
            raise TransferError(
                "--ray and --ray-address were both given. Give --ray for this machine, or "
                "--ray-address for a cluster."
            )

    @property
    def uses_ray(self) -> bool:
        """Whether trials run on Ray."""
        return self.ray or self.ray_address is not None


RUN_DEFAULTS = RunOptions()
