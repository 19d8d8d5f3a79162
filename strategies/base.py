"""Base class of all transfer-learning strategies."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from strategies.core.context import RunContext
from strategies.core.errors import NotApplicable, unknown_name
from strategies.data.dataset import Dataset
from strategies.heads.batches import Loss
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
        check_names(cls.name, given, cls.hyperparameter_types())
        return cls(**given)

    @classmethod
    def hyperparameter_types(cls) -> Mapping[str, Any]:
        """Return the type of every hyperparameter by name, searched or not."""
        hints = get_type_hints(cls)
        return {field.name: hints[field.name] for field in fields(cls)}

    @classmethod
    def checked(
        cls, given: Mapping[str, Any], dataset: Dataset, backbone: Backbone
    ) -> dict[str, Any]:
        """Return some hyperparameters as the strategy takes them, after a check of their values.

        A value of a searched hyperparameter must be one that the search could sample.

        Raises
        ------
        NotApplicable
            If the strategy has no hyperparameter of a name, or cannot take a value.
        """
        types, space = cls.hyperparameter_types(), cls.search_space(dataset, backbone)
        check_names(cls.name, given, types)
        found = {}
        for name, value in given.items():
            allowed = space.get(name) or types[name]
            is_in, words, taken = _matched(value, allowed)
            if not is_in:
                raise NotApplicable(f"{name} of {cls.name} must be {words}, got {value!r}.")
            found[name] = taken
        refusal = cls.from_hyperparameters(found).inapplicable(dataset, backbone)
        if refusal is not None:
            raise NotApplicable(f"{cls.name} is not applicable: {refusal}")
        return found


def check_names(strategy: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise NotApplicable for the first hyperparameter that a strategy does not have."""
    for name in given:
        if name not in known:
            raise NotApplicable(unknown_name(f"hyperparameter of {strategy}", name, known))


def _matched(value: Any, allowed: Any) -> tuple[bool, str, Any]:
    """Match a value with a distribution, or with the type of a field.

    Returns
    -------
    Whether it is one of theirs, which those are in words, and the value with their type: a whole
    number such as 1e3 is an int for an int.
    """
    if isinstance(allowed, FloatDistribution):
        words = f"a number from {allowed.low:g} to {allowed.high:g}"
        return _is_number(value) and allowed.low <= value <= allowed.high, words, value
    if isinstance(allowed, IntDistribution):
        words = f"a whole number from {allowed.low} to {allowed.high}"
        is_in = _is_whole(value) and allowed.low <= value <= allowed.high
        return is_in, words, int(value) if is_in else value
    if isinstance(allowed, CategoricalDistribution):
        return _matched_choice(value, allowed.choices)
    kinds = [kind for kind in get_args(allowed) or (allowed,) if kind is not NoneType]
    if get_origin(allowed) is Literal:
        return _matched_choice(value, get_args(allowed))
    if get_origin(kinds[0]) is Literal:
        return _matched_choice(value, (None, *get_args(kinds[0])))
    if value is None:
        return NoneType in get_args(allowed), _KIND_WORDS[kinds[0]], value
    if kinds[0] is int:
        return _is_whole(value), _KIND_WORDS[int], int(value) if _is_whole(value) else value
    if kinds[0] is float:
        return _is_number(value), _KIND_WORDS[float], value
    return isinstance(value, kinds[0]), _KIND_WORDS[kinds[0]], value


_KIND_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _matched_choice(value: Any, choices: Collection[Any]) -> tuple[bool, str, Any]:
    """Match a value with one of some choices; true is not 1."""
    words = "one of " + ", ".join("none" if c is None else str(c).lower() for c in choices)
    equal = [c for c in choices if c == value and isinstance(c, bool) == isinstance(value, bool)]
    return bool(equal), words, equal[0] if equal else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and float(value).is_integer()
