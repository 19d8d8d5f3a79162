"""Base class of all transfer-learning strategies."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from optuna.trial import BaseTrial

from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier


@dataclass(frozen=True)
class Strategy(ABC):
    """A method that adapts a pretrained backbone to a dataset.

    Every subclass is a final, frozen dataclass whose fields are its hyperparameters, all with
    defaults.
    """

    name: ClassVar[str]
    """Key in the registry, file name without suffix, and name in reports and JSON."""
    summary: ClassVar[str]
    """One-line description that is shown to users."""
    references: ClassVar[tuple[str, ...]]
    """Publications that describe the method."""
    selects_on_val: ClassVar[bool]
    """Whether `fit` selects weights on the validation images. If not, the final `fit` may use
    train and validation images together."""

    @classmethod
    @abstractmethod
    def suggest(cls, trial: BaseTrial, dataset: Dataset, backbone: Backbone) -> Self:
        """Sample hyperparameters.

        An Optuna `FixedTrial` with a trial's parameters reproduces its hyperparameters.
        """

    @abstractmethod
    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Fit a classifier to ``dataset.train``.

        If `selects_on_val`, select its weights on ``dataset.val``.

        Raises
        ------
        OutOfTime
            If the deadline passes before there is a classifier.
        """

    @abstractmethod
    def image_passes(self, dataset: Dataset, backbone: Backbone) -> float:
        """Return the cost of `fit` with an empty cache, in forward passes of a single image."""

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Return why the strategy cannot be applied to this dataset and backbone, or None."""
        return None

    def hyperparameters(self) -> dict[str, Any]:
        """Return the hyperparameters by name."""
        return asdict(self)
