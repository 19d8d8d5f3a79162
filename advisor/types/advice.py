"""Dataclasses of the advice: strategies, quadrant, findings and the risk of negative transfer.

They are frozen, and their fields are the same in Python, JSON and reports.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from advisor.types.notebook import advice_frame, advice_html
from advisor.types.profile import AlternativeBackbone, BackboneScore, Profile
from advisor.types.summary import advice_text
from strategies.core.metrics import Interval
from strategies.data.image import Skipped

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA_VERSION = 6

Size = Literal["small", "large"]
Domain = Literal["similar", "different"]
Severity = Literal["issue", "tip"]


@dataclass(frozen=True, slots=True)
class AffectedImage:
    """An image in which a finding shows. What does not apply is None.

    Attributes
    ----------
    path
        The image, as the dataset names it. For TL001 it may also be a folder that was left out.
    other_path
        The image that it duplicates: of several, the most similar one. For TL002 the copy to
        keep, for TL004 the image of the other split.
    label
        Its class. None for test images and unreadable files: their labels are not read.
    suggested_label
        The class that a classifier predicts, which was not trained on the image (TL009).
    score
        How strongly the finding shows. TL002, TL003, TL005: similarity, at most 1 (an exact
        copy). TL009: probability of `suggested_label`, in [0, 1]. TL010: shorter side in pixels.
        TL012: longer side over shorter side. TL013: brightest minus darkest grey level, 0 to 255.
        TL017: sharpness (`ImageStats.sharpness`). TL018, TL019: the grey level, 0 to 255, that
        the image was judged by.
    """

    path: Path
    other_path: Path | None = None
    label: str | None = None
    suggested_label: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Finding:
    """A problem or hint with a TL code about the data, the domain or the transfer.

    Attributes
    ----------
    code
        The TL code, for instance "TL006".
    severity
        "issue" for a problem, "tip" for a hint.
    detail
        What was found, with numbers.
    action
        What to do about it.
    examples
        Files or classes in which it shows, the clearest first.
    voids_advice
        Whether no recommendation holds before this is mended. Reports then begin with it.
    affected
        All images in which it shows, the clearest first. Empty for findings about classes or
        about the whole dataset, and in advice that was read from JSON or from the cache.
    n_affected
        Number of affected images; known also where `affected` is not.
    """

    code: str
    severity: Severity
    title: str
    detail: str
    action: str
    examples: tuple[str, ...] = ()
    voids_advice: bool = False
    affected: tuple[AffectedImage, ...] = field(default=(), compare=False, repr=False)
    n_affected: int = 0

    def __post_init__(self) -> None:
        """Count the affected images."""
        if self.affected:
            object.__setattr__(self, "n_affected", len(self.affected))


@dataclass(frozen=True)
class Quadrant:
    """Quadrant of a dataset by size and domain similarity, with CS231n's rule of thumb for it.

    Attributes
    ----------
    rule
        The strategy that CS231n's rule of thumb recommends in this quadrant.
    borderline
        Whether the dataset is so close to the threshold of an axis that its side is uncertain.
    candidates
        The rules of all quadrants that the dataset may be in, `rule` first. Different quadrants
        can have the same rule, so a borderline dataset can have one candidate.
    size_decades
        Position on the size axis: powers of ten above the threshold (positive: large) or below.
    similarity
        Position on the domain axis: similarity in [0, 1].
    """

    size: Size
    domain: Domain
    rule: str
    borderline: bool
    candidates: tuple[str, ...]
    size_decades: Interval
    similarity: Interval


@dataclass(frozen=True)
class Recommendation:
    """A strategy that applies, at one input size, with its predicted accuracy and cost.

    Attributes
    ----------
    input_px
        Input size of the fit.
    accuracy
        Predicted test accuracy.
    seconds
        Predicted time to fit it on this machine.
    hyperparameters
        Those to begin with.
    reasons
        Why it has this rank, one sentence each; empty if it is not ranked.
    image_passes
        Cost of a fit, in forward passes of one image at the profile's input size.
    cases
        Number of cases behind the predicted accuracy: of the benchmarks, or datasets of
        `Strategy.transformer_gain`. 0: it rests on `Strategy.fallback_gain`.
    measured
        Whether its head was cross-validated at this input size, and not only predicted.
    peak_bytes
        Predicted largest memory of a fit on its device, in bytes: of the network, its copies and a
        batch. None in advice without it.
    """

    strategy: str
    backbone: str
    accuracy: Interval
    seconds: Interval
    hyperparameters: Mapping[str, Any]
    reasons: tuple[str, ...]
    image_passes: float
    cases: int
    input_px: int
    measured: bool = False
    peak_bytes: int | None = None


@dataclass(frozen=True)
class BudgetPick:
    """The strategy and input size to use if a fit must end within a time.

    Attributes
    ----------
    time_s
        Time for the fit on this machine in seconds; None: no limit.
    image_passes
        The same time in forward passes of one image at the profile's input size, for other
        machines.
    accuracy
        Predicted test accuracy.
    seconds
        Predicted time of the fit.
    """

    time_s: float | None
    image_passes: float | None
    strategy: str
    input_px: int
    accuracy: Interval
    seconds: Interval


@dataclass(frozen=True)
class Frontier:
    """Accuracy that can be expected within a time.

    Attributes
    ----------
    options
        Every strategy that applies, at every input size; not ranked.
    picks
        The best option for each of several times, from short to long. Times in which nothing can
        be fitted are left out.
    """

    options: tuple[Recommendation, ...]
    picks: tuple[BudgetPick, ...]


@dataclass(frozen=True)
class Rejection:
    """A strategy that does not apply, and why."""

    strategy: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """Result of `recommend`: strategies, best first, and those that do not apply.

    Attributes
    ----------
    options
        Every strategy that applies, at every input size; not ranked.
    """

    quadrant: Quadrant
    recommendations: tuple[Recommendation, ...]
    rejections: tuple[Rejection, ...]
    options: tuple[Recommendation, ...]


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen automatically.

    Attributes
    ----------
    name, value
        The option and the value chosen for it.
    source
        Why it was chosen, and with which option to set it by hand.
    """

    name: str
    value: str
    source: str


MAX_BREAK_EVEN_N_PER_CLASS = 10_000
"""Largest number of images per class for which `break_even_n_per_class` is predicted."""


@dataclass(frozen=True)
class TransferRisk:
    """Risk of negative transfer: that a strategy does worse than training from random weights.

    Attributes
    ----------
    probability
        Probability that `gain` is below 0, in [0, 1].
    gain
        Predicted transfer gain: accuracy of the strategy minus that of ``from_scratch``.
    break_even_n_per_class
        Images per class from which on training from scratch is predicted to do as well. None if
        it already does as well, or if that is more than `MAX_BREAK_EVEN_N_PER_CLASS`.
    """

    strategy: str
    probability: float
    gain: Interval
    break_even_n_per_class: Interval | None = None


@dataclass(frozen=True)
class Advice:
    """Result of ``tl-advise``: strategies, best first, with all the measurements behind them.

    Attributes
    ----------
    dataset, data
        Name of the dataset, and its path as given.
    recommendations, rejections
        Strategies that apply, best first, and those that do not.
    findings
        Findings about the data, the domain and the transfer.
    quarantine
        Files that were left out, each with the reason.
    choices
        Settings that were chosen automatically.
    split
        How the images were divided into train, validation and test.
    n_test
        Number of test images.
    seconds
        Time that the advice took.
    backbones
        The backbones that were compared, best first; empty if there was only one.
    command
        Command line that reproduces this advice.
    risks
        Risk of negative transfer of each strategy; empty where it cannot be predicted.
    frontier
        What can be expected within several times; None in advice without it.
    time_s
        Time for the recommended fit on this machine in seconds; None: no limit.
    alternative
        Linear probe of the embedded backbone on the same images, measured if the backbone in use
        is in doubt; otherwise None.
    device_bytes
        Memory of the accelerator in bytes; None on a CPU.
    """

    dataset: str
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
    frontier: Frontier | None = None
    time_s: float | None = None
    alternative: AlternativeBackbone | None = None
    device_bytes: int | None = None

    @property
    def best(self) -> Recommendation:
        """The recommended strategy."""
        return self.recommendations[0]

    def __repr__(self) -> str:
        """Return the recommendation, the runner-up and the issues in a few lines."""
        return advice_text(self)

    def _repr_html_(self) -> str:
        """Return what notebooks show: headline, strategies and findings."""
        return advice_html(self)

    def to_frame(self) -> "DataFrame":
        """Return a table of pandas with one row per strategy and input size.

        Columns
        -------
        strategy, input_px, backbone
            What is fitted, and at which input size.
        rank
            Place of the strategy in `recommendations`, from 1; missing at other input sizes.
        accuracy, accuracy_low, accuracy_high
            Predicted test accuracy with its interval, in [0, 1].
        seconds, seconds_low, seconds_high
            Predicted time of a fit on this machine.
        cases, measured, peak_bytes
            As in `Recommendation`.
        params_NAME
            The hyperparameter NAME to begin with.

        Raises
        ------
        TransferError
            If pandas is not installed.
        """
        return advice_frame(self)

    @property
    def void(self) -> Finding | None:
        """The finding that makes the recommendations void, the gravest of several; else None."""
        found = [f for f in self.findings if f.voids_advice]
        return max(found, key=lambda f: f.code, default=None)
