"""The nouns of the advice: frozen, and the same in Python, JSON and reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from advisor.probing import BackboneScore as BackboneScore
from advisor.probing import LearningCurve as LearningCurve
from advisor.probing import Pilot as Pilot
from advisor.probing import ProbeResult as ProbeResult
from advisor.probing import Rival as Rival
from advisor.similarity import DomainSimilarity
from strategies.core.metrics import Evaluation, Interval
from strategies.core.pictures import Skipped

SCHEMA_VERSION = 1

Size = Literal["small", "large"]
Domain = Literal["similar", "different", "unknown"]
Severity = Literal["issue", "tip"]
Ended = Literal["time", "trials", "unbeatable", "no_contender", "interrupted"]
"""Why a search was over; "unbeatable": even a trial without an error on val would gain too
little to count; "no_contender": no strategy that may still win is left."""
TransferVerdict = Literal["positive", "none", "negative", "unclear", "untold"]


@dataclass(frozen=True)
class Profile:
    """What was measured about a task on a backbone.

    Attributes
    ----------
    n_by_class
        Pictures in train and val by class.
    similarity
        None where it cannot be measured (no BatchNorm).
    probes
        Softmax at the penultimate depth and on all, then SVMs at every depth and on all.
    layer_svm
        The SVM at the depth that cross-validation chose, judged without the optimism of choosing.
    n_measured
        Pictures of train and val that similarity and probes were measured on.
    feature_width
        Channels of the backbone's penultimate activations.
    ms_per_image
        Measured time of one frozen forward pass, reading included.
    image_passes
        Cost of every strategy with its default hyperparameters, in forward passes.
    why_not
        Reasons of the strategies that do not apply.
    random_probes
        SVMs at every depth of the same network with random weights: what the architecture
        brings without pretraining. Empty where it was not measured.
    curve, knn, pilot
        Accuracy over pictures a class; of the nearest neighbours at the penultimate depth; of a
        short fine-tuning. None where it was not measured.
    transfer_gain
        Cross-validated accuracy of the best pretrained depth minus that of the best depth of
        random weights on the same pictures, in [-1, 1]. None where it was not measured.
    pixel_probe
        Accuracy of a linear rule on grey thumbnails, by cross-validation; None if not measured.
    head_s
        Measured seconds of fitting a strategy's linear head with all choices, features at hand.
    build_s
        Measured seconds of making the network.
    fine_tune_defaults
        Learning rate, blend and mirroring that the fine-tuning strategies would choose by
        themselves; empty where that was not asked.
    passes_per_trained_image
        Measured cost of training on a picture, in forward passes; None: not measured.
    rival
        What the embedded backbone reaches on the same pictures, where this one is in doubt; None
        where that was not measured.
    transferability
        LogME and regularised H-score at the penultimate depth, by name; higher is better.
        Comparable between backbones on one task, not between tasks.
    """

    n: int
    n_train: int
    n_val: int
    n_by_class: Mapping[str, int]
    imbalance: float
    median_side_px: float
    backbone: str
    input_px: int
    feature_width: int
    depth_names: tuple[str, ...]
    flops_shares: tuple[float, ...]
    similarity: DomainSimilarity | None
    probes: tuple[ProbeResult, ...]
    layer_svm: ProbeResult
    majority_share: float
    n_measured: int
    ms_per_image: float
    image_passes: Mapping[str, float]
    why_not: Mapping[str, str]
    random_probes: tuple[ProbeResult, ...] = ()
    curve: LearningCurve | None = None
    knn: Interval | None = None
    transferability: Mapping[str, Interval] = field(default_factory=dict)
    pilot: Pilot | None = None
    transfer_gain: Interval | None = None
    pixel_probe: Interval | None = None
    head_s: Mapping[str, float] = field(default_factory=dict)
    build_s: float = 0.0
    passes_per_trained_image: float | None = None
    fine_tune_defaults: Mapping[str, float | bool] = field(default_factory=dict)
    rival: Rival | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.n_by_class)

    @property
    def n_per_class(self) -> float:
        """Mean number of pictures a class."""
        return self.n / self.n_classes

    @property
    def linear_probe(self) -> ProbeResult:
        """The softmax probe at the penultimate depth."""
        return self.probes[0]


@dataclass(frozen=True)
class Finding:
    """A coded remark about the data, the domain or the transfer, with what to do about it.

    Attributes
    ----------
    examples
        Files or classes that show it, the clearest first.
    """

    code: str
    severity: Severity
    title: str
    detail: str
    action: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quadrant:
    """Where a task lies, and what the textbook says of that place.

    Attributes
    ----------
    rule
        The strategy that CS231n's rule of thumb names for this quadrant.
    borderline
        Whether an axis is too close to its threshold to call.
    candidates
        The rules of all quadrants that the task may be in, `rule` first. Different quadrants can
        have the same rule, so a borderline place can have one candidate.
    size_decades
        Position on the size axis: powers of ten above (positive: large) or below the border.
    similarity
        Position on the domain axis; None where it is unknown.
    """

    size: Size
    domain: Domain
    rule: str
    borderline: bool
    candidates: tuple[str, ...]
    size_decades: Interval
    similarity: Interval | None


@dataclass(frozen=True)
class Recommendation:
    """A strategy with its first hyperparameters, what to expect, what it costs, and why."""

    strategy: str
    backbone: str
    accuracy: Interval
    seconds: Interval
    hyperparameters: Mapping[str, Any]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Rejection:
    """A strategy that does not apply, and why."""

    strategy: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """What `recommend` decides: strategies best first, and those that do not apply."""

    quadrant: Quadrant
    recommendations: tuple[Recommendation, ...]
    rejections: tuple[Rejection, ...]


@dataclass(frozen=True)
class Choice:
    """Something that was chosen automatically, where it comes from, and how to pin it."""

    name: str
    value: str
    source: str


FARTHEST = 10_000
"""Pictures a class up to which it is predicted when training from scratch catches up."""


@dataclass(frozen=True)
class TransferRisk:
    """The chance that a strategy does worse than training from random weights.

    Attributes
    ----------
    probability
        That `gain` is below 0, in [0, 1].
    gain
        Predicted transfer gain: accuracy of the strategy minus that of ``from_scratch``.
    catches_up
        Pictures a class from which on training from scratch is predicted to do as well, not
        beyond `FARTHEST`; None if it does now, or is not expected to before that.
    """

    strategy: str
    probability: float
    gain: Interval
    catches_up: Interval | None = None


@dataclass(frozen=True)
class Advice:
    """The answer of ``tl-advise``: strategies best first, and all that it rests on.

    Attributes
    ----------
    backbones
        Those that were compared, best first; empty where there was one.
    command
        What gives this advice again.
    risks
        Of negative transfer, by strategy; empty where nothing is known of it.
    """

    task: str
    data: Path
    recommendations: tuple[Recommendation, ...]
    rejections: tuple[Rejection, ...]
    quadrant: Quadrant
    profile: Profile
    findings: tuple[Finding, ...]
    quarantine: tuple[Skipped, ...]
    choices: tuple[Choice, ...]
    split: str
    n_test: int
    seed: int
    seconds: float
    backbones: tuple[BackboneScore, ...] = ()
    command: str = ""
    risks: tuple[TransferRisk, ...] = ()

    @property
    def best(self) -> Recommendation:
        """The recommended strategy."""
        return self.recommendations[0]


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a search: a score on val, or the reason why there is none."""

    number: int
    strategy: str
    hyperparameters: Mapping[str, Any]
    val_accuracy: Interval | None
    seconds: float
    reason: str | None


@dataclass(frozen=True)
class ClassGain:
    """What pretraining brought to one class; `sure` if that is more than chance allows for."""

    name: str
    n: int
    gain: Interval
    sure: bool


@dataclass(frozen=True)
class TransferGain:
    """Accuracy with pretrained weights minus that of a control without them, on the same pictures.

    Attributes
    ----------
    control
        What the control was.
    verdict
        "negative" where the interval lies below 0, "none" where it is narrow around 0; "untold"
        where the control itself is no better than always naming the commonest class, so that what
        it would reach with more time is not known.
    per_class
        Empty where nothing is told.
    """

    control: str
    gain: Interval
    verdict: TransferVerdict
    n: int
    per_class: tuple[ClassGain, ...]


@dataclass(frozen=True)
class Soup:
    """What came of averaging the weights of the best trainings of a run.

    Attributes
    ----------
    trials
        Those whose weights were averaged, in the order in which they were put in.
    val_accuracy
        Of the average, on the pictures that chose it; None if no average was judged.
    alone
        Of the best trial alone, which it had to beat.
    kept
        Whether it won, and is the classifier.
    reason
        Why the trial was kept instead.
    """

    trials: tuple[int, ...]
    val_accuracy: Interval | None
    alone: Interval
    kept: bool
    reason: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The answer of ``tl-auto run``.

    Attributes
    ----------
    test
        The one judgement on the test pictures; None if there are none.
    refitted
        Whether the classifier was fitted once more on train and val together.
    transfer_gain
        What pretraining brought; None where no control was trained, or there is no test.
    ended
        Why the search was over.
    n_folds
        How many parts of train and val trials were judged on, each without having learnt from it;
        1: val alone.
    soup
        What came of averaging the best trainings; None where there were not two, or it was not
        asked for. If it was kept, the val accuracy of `best` is the average's.
    """

    advice: Advice
    trials: tuple[TrialRecord, ...]
    best: TrialRecord
    test: Evaluation | None
    refitted: bool
    folder: Path
    seconds: float
    transfer_gain: TransferGain | None = None
    ended: Ended = "time"
    n_folds: int = 1
    soup: Soup | None = None
