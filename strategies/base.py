"""What a strategy is."""

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
    """A way to adapt a pretrained backbone to a dataset.

    Every subclass is a final, frozen dataclass whose fields are its hyperparameters, all with
    defaults.
    """

    name: ClassVar[str]
    """Registry key, file stem, and the name in reports and JSON."""
    summary: ClassVar[str]
    """One line for people."""
    references: ClassVar[tuple[str, ...]]
    """Where the method comes from."""
    selects_on_val: ClassVar[bool]
    """Whether `fit` needs validation images to choose its weights. One that does not may be fitted on
    train and validation together once its hyperparameters are chosen."""

    @classmethod
    @abstractmethod
    def suggest(cls, trial: BaseTrial, dataset: Dataset, backbone: Backbone) -> Self:
        """Draw hyperparameters; the same ones from a FixedTrial of the same parameters."""

    @abstractmethod
    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Fit to ``dataset.train``, selecting on ``dataset.val``.

        Raises
        ------
        OutOfTime
            If the deadline passed before there was a classifier.
        """

    @abstractmethod
    def image_passes(self, dataset: Dataset, backbone: Backbone) -> float:
        """Return the cost of `fit` in forward passes of one image, nothing cached."""

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Return the reason why this strategy does not apply here, or None if it does."""
        return None

    def hyperparameters(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)
