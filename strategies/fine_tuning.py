"""Fine-tuning: the implementation that all strategies share which train the pretrained network."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, cast, get_args, get_type_hints

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from strategies.base import Strategy, check_names
from strategies.core.context import RunContext
from strategies.core.errors import NotApplicable
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, input_sizes, resized
from strategies.models.classifier import ImageClassifier
from strategies.models.network import Network
from strategies.training.costs.memory import training_bytes
from strategies.training.defaults import (
    Measurements,
    NetworkFacts,
    default_batch_size,
    default_steps,
    fill,
    fine_tune_defaults,
    lr_factor,
)
from strategies.training.lp_ft import fine_tune, training_passes
from strategies.training.recipe import BATCH_SIZE, BatchNorm, Recipe, RecipeDraft

NOMINAL_LR = 1e-3
"""Learning rate of a recipe whose memory is predicted: it makes no difference."""


@dataclass(frozen=True)
class FineTuning(Strategy):
    """Fit a linear probe as the head, then train some of the network's weights with it (LP-FT).

    A subclass states which settings of the recipe are its hyperparameters (`tunable`), and the
    recipe that it starts from.

    Attributes
    ----------
    recipe
        Settings of the training run. Open ones (None) are chosen from the images by `fit`.
    input_px
        Side of the square input. None: that of the backbone.
    """

    recipe: RecipeDraft
    input_px: int | None = None

    trains_network: ClassVar[bool] = True
    tunable: ClassVar[tuple[str, ...]] = (
        "lr",
        "blend",
        "head_lr_factor",
        "steps",
        "batch_norm",
        "label_smoothing",
        "hflip",
    )
    """Settings of the recipe that are hyperparameters; the others have a fixed value."""
    tunable_by_layer: ClassVar[tuple[str, ...]] = ("layer_lr_decay", "drop_path")
    """Further hyperparameters where the learning rate decays by layer: of transformers and
    ConvNeXt. They are listed only if they are set, as is the batch size where it is not 32."""
    lr_range: ClassVar[tuple[float, float]] = (3e-5, 3e-3)
    lr_range_by_layer: ClassVar[tuple[float, float]] = (1e-6, 5e-4)
    """Searched learning rates of convolutional networks, and of transformers and ConvNeXt, for
    batches of 32 images."""
    steps_share: ClassVar[float] = 1.0
    """Default number of steps, as a share of that of full fine-tuning."""

    def __post_init__(self) -> None:
        default = self.default_recipe()
        for field in fields(RecipeDraft):
            value = getattr(self.recipe, field.name)
            if field.name not in self.known() and value != getattr(default, field.name):
                raise NotApplicable(
                    f"{field.name} is not a hyperparameter of {self.name}: it would be ignored. "
                    f"Its hyperparameters are {', '.join(self.known())} and input_px."
                )

    @classmethod
    def known(cls) -> tuple[str, ...]:
        """Return the settings of the recipe that are hyperparameters with some network."""
        return tuple(dict.fromkeys((*cls.tunable, *cls.tunable_by_layer, "batch_size")))

    @classmethod
    def default_recipe(cls) -> RecipeDraft:
        """Return the recipe in which no hyperparameter is set."""
        return cast(RecipeDraft, cls.__dataclass_fields__["recipe"].default)

    @classmethod
    def search_space(cls, dataset: Dataset, backbone: Backbone) -> Mapping[str, BaseDistribution]:
        """Return learning rates, steps, blend, BatchNorm mode, smoothing, flips, input size.

        Transformers and ConvNeXt have layer decay and drop path as well. Networks without
        BatchNorm have no mode of it. The batch is that of the number of images.
        """
        batch_size = default_batch_size(len(dataset.train))
        base, factor = cls.default_steps(len(dataset.train), batch_size), lr_factor(batch_size)
        by_layer = backbone.family != "convolutional"
        low, high = cls.lr_range_by_layer if by_layer else cls.lr_range
        layers = {
            "layer_lr_decay": FloatDistribution(0.6, 1.0),
            "drop_path": FloatDistribution(0.0, 0.3),
        }
        own = {name: layers[name] for name in cls.tunable_by_layer if by_layer}
        has_batch_norm = backbone.capabilities.norm == "batch"
        modes = {"batch_norm": CategoricalDistribution(get_args(BatchNorm))}
        return {
            "lr": FloatDistribution(low * factor, high * factor, log=True),
            **own,
            "blend": FloatDistribution(0.25, 1.0),
            "head_lr_factor": FloatDistribution(1.0, 10.0, log=True),
            "steps": IntDistribution(base // 2, 2 * base),
            **(modes if has_batch_norm else {}),
            "label_smoothing": FloatDistribution(0.0, 0.2),
            "hflip": CategoricalDistribution([False, True]),
            "input_px": CategoricalDistribution(input_sizes(backbone)),
        }

    @classmethod
    def starting_point(cls, measured: Measurements) -> Self:
        """Return learning rate, blend and flips from the images, and the default steps."""
        start = cls(cls.default_recipe(), measured.input_px)
        recipe = start.resolved(measured.n_train, measured)
        return replace(start, recipe=fill(recipe, fine_tune_defaults(measured)))

    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Train; keep an earlier round only if it is significantly better on validation."""
        backbone = resized(backbone, self.input_px)
        draft = self.resolved(len(dataset.train), backbone)
        network, recipe = fine_tune(dataset, backbone, draft, ctx, self.adapted)
        names = set(replace(self, recipe=draft).hyperparameters())
        names |= set(() if backbone.family == "convolutional" else self.tunable_by_layer)
        settings = {name: getattr(recipe, name) for name in self.known() if name in names}
        return ImageClassifier(
            dataset.classes,
            backbone,
            (backbone.n_depths,),
            network,
            self.name,
            settings | {"input_px": backbone.input_px},
        )

    def image_passes(self, dataset: Dataset, backbone: Backbone) -> float:
        """Return the passes of the probe, of all training steps, and of validation."""
        draft = self.resolved(len(dataset.train), backbone)
        return training_passes(dataset, backbone, draft, self.input_px)

    def peak_bytes(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> int:
        """Predict the largest memory of `fit` in bytes: that of the training run.

        The feature pass before it takes less: it has no copies of the weights, no optimiser, and
        no activations to keep.
        """
        draft = self.resolved(len(dataset.train), backbone)
        recipe = Recipe.of(replace(draft, lr=draft.lr or NOMINAL_LR))
        n_classes, px = dataset.n_classes, self.input_px
        return training_bytes(backbone, recipe, ctx, n_classes, input_px=px)

    def adapted(
        self, network: Network, backbone: Backbone, recipe: Recipe
    ) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the network has the parameters that are trained: its own."""
        return contextlib.nullcontext()

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Reject drop path for a convolutional network, whose recipe has none."""
        if self.recipe.drop_path and backbone.family == "convolutional":
            return f"drop_path is for transformers and ConvNeXt, and {backbone.name} is neither"
        return None

    def resolved(self, n_train: int, network: NetworkFacts) -> RecipeDraft:
        """Return the recipe with the settings that follow from network and number of images.

        These are batch and number of steps here, and the trained stages in subclasses. A batch of
        `BATCH_SIZE` images stays open: it is what an open one means.
        """
        given, default = self.recipe.batch_size, default_batch_size(n_train)
        steps = self.recipe.steps or self.default_steps(n_train, given or default)
        batch_size = given or (None if default == BATCH_SIZE else default)
        return replace(self.recipe, steps=steps, batch_size=batch_size)

    @classmethod
    def default_steps(cls, n_train: int, batch_size: int) -> int:
        """Return the default number of optimiser steps."""
        return round(cls.steps_share * default_steps(n_train, batch_size))

    def hyperparameters(self) -> dict[str, Any]:
        """Return the tunable settings of the recipe, and the input size."""
        settings = {name: getattr(self.recipe, name) for name in self.known()}
        listed = {k: v for k, v in settings.items() if k in self.tunable or v is not None}
        return listed | {"input_px": self.input_px}

    @classmethod
    def from_hyperparameters(cls, given: Mapping[str, Any]) -> Self:
        """Return the strategy with some hyperparameters set, see `Strategy`."""
        check_names(cls.name, given, cls.hyperparameter_types())
        settings = {name: value for name, value in given.items() if name != "input_px"}
        return cls(replace(cls.default_recipe(), **settings), given.get("input_px"))

    @classmethod
    def hyperparameter_types(cls) -> Mapping[str, Any]:
        """Return the types of the tunable settings of the recipe, and of the input size."""
        hints = {**get_type_hints(RecipeDraft), **get_type_hints(cls)}
        return {name: hints[name] for name in (*cls.known(), "input_px")}
