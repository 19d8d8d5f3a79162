"""Base class of all transfer-learning strategies."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self

from optuna.distributions import BaseDistribution

from strategies.core.context import RunContext
from strategies.core.errors import NotApplicable, unknown_name
from strategies.data.dataset import Dataset
from strategies.heads.cross_validation import Loss
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.training.costs.memory import feature_pass_bytes
from strategies.training.defaults import Measurements

Role = Literal["baseline", "transfer", "control"]
"""Part of a strategy in a comparison.

The gains of all strategies are measured against the baseline. A control uses no pretrained
weights: it shows what transfer is worth.
"""


VTAB_1K = "ViT-B/16 on VTAB-1k (OSU-MLB/ViT_PEFT_Vision, 2025)"
"""Source of the published gains of transformers: accuracies of 16 methods on 20 datasets of 1,000
train images each."""


@dataclass(frozen=True)
class GainPrior:
    """Normal prior of a strategy's gain over the baseline, in log-odds of accuracy."""

    mean: float
    sd: float


@dataclass(frozen=True)
class PublishedGain:
    """Gain over a linear probe in a publication, in log-odds of accuracy.

    Attributes
    ----------
    mean, sd
        Mean and standard deviation over the datasets.
    n_datasets, n_images
        Number of datasets, and of train images of each.
    source
        Network and publication.
    """

    mean: float
    sd: float
    n_datasets: int
    n_images: int
    source: str


@dataclass(frozen=True)
class Strategy(ABC):
    """A way to adapt a pretrained backbone to a dataset.

    Every subclass is a final, frozen dataclass whose fields are its hyperparameters, all with
    defaults. It states all facts about itself, so that nothing else needs to know its name.
    """

    name: ClassVar[str]
    """Key in the registry, file name without suffix, and name in JSON."""
    title: ClassVar[str]
    """Name that is shown to users."""
    references: ClassVar[tuple[str, ...]]
    """Publications that describe the method."""
    role: ClassVar[Role] = "transfer"
    """Part in a comparison: baseline, transfer or control."""
    trains_network: ClassVar[bool]
    """Whether `fit` trains the network in epochs, and selects weights on the validation images. If
    not, the final `fit` may use train and validation images together."""
    head_loss: ClassVar[Loss | None] = None
    """Loss of the linear head that is all that `fit` fits to the frozen features. Such a strategy
    is measured by cross-validation of this head. None: its accuracy is predicted."""
    fallback_gain: ClassVar[GainPrior]
    """Expected gain where the benchmarks have no cases of the strategy: mean and standard
    deviation over datasets, from these benchmarks or from publications."""
    transformer_gain: ClassVar[PublishedGain | None] = None
    """Published gain on a transformer. The benchmarks have no transformers, so it takes the place
    of theirs. None: that of the benchmarks counts for transformers too."""

    @classmethod
    @abstractmethod
    def search_space(cls, dataset: Dataset, backbone: Backbone) -> Mapping[str, BaseDistribution]:
        """Return the distribution of every hyperparameter that a search samples."""

    @classmethod
    @abstractmethod
    def starting_point(cls, measured: Measurements) -> Self:
        """Return the first hyperparameters to try, given what was measured on the images."""

    @abstractmethod
    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Fit a classifier to ``dataset.train``.

        If `trains_network`, select its weights on ``dataset.val``.

        Raises
        ------
        OutOfTime
            If the deadline passes before there is a classifier.
        """

    @abstractmethod
    def image_passes(self, dataset: Dataset, backbone: Backbone) -> float:
        """Return the cost of `fit` with an empty cache, in forward passes of a single image."""

    def peak_bytes(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> int:
        """Predict the largest memory of `fit` on its device in bytes: that of a feature pass.

        Strategies that train a network override it. It is measured once per network, see `memory`.
        """
        return feature_pass_bytes(backbone, ctx, self.hyperparameters().get("input_px"))

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Return why the strategy cannot be applied to this dataset and backbone, or None."""
        return None

    def hyperparameters(self) -> dict[str, Any]:
        """Return the hyperparameters by name."""
        return asdict(self)

    def with_input_px(self, input_px: int) -> Self:
        """Return the strategy with another input size; unchanged if it has no such setting."""
        given = self.hyperparameters()
        has_size = "input_px" in given
        return self.from_hyperparameters({**given, "input_px": input_px}) if has_size else self

    @classmethod
    def from_hyperparameters(cls, given: Mapping[str, Any]) -> Self:
        """Return a strategy with some hyperparameters; the others have their defaults.

        Raises
        ------
        NotApplicable
            If the strategy has no hyperparameter of this name.
        """
        names = [field.name for field in fields(cls)]
        check_names(cls.name, given, names)
        return cls(**given)


def check_names(strategy: str, given: Mapping[str, Any], known: list[str]) -> None:
    """Raise NotApplicable for the first hyperparameter that a strategy does not have."""
    for name in given:
        if name not in known:
            raise NotApplicable(unknown_name(f"hyperparameter of {strategy}", name, known))
