"""Partial fine-tuning: freeze the first stages, fine-tune the rest and the head."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast, final, get_args

from optuna.trial import BaseTrial

from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, input_sizes, resized
from strategies.models.classifier import ImageClassifier
from strategies.training.lp_ft import fine_tune, prepare, training_passes
from strategies.training.recipe import (
    BATCH_SIZE,
    LABEL_SMOOTHING,
    BatchNorm,
    Recipe,
    default_steps,
)


@final
@dataclass(frozen=True)
class PartialFineTune(Strategy):
    """Fine-tuning with the parameters and BatchNorm statistics of the first stages frozen.

    The frozen stages run once over a few crops of every image, and their activations are kept
    (`strategies.training.frozen_activations`).

    Attributes
    ----------
    frozen_stages
        Number of depths to freeze, from the input. None: half of them.
    lr, blend, head_lr_factor, steps, batch_norm, label_smoothing, hflip, input_px
        As for full fine-tuning, for the stages that are trained.
    """

    frozen_stages: int | None = None
    lr: float | None = None
    blend: float | None = None
    head_lr_factor: float = 1.0
    steps: int | None = None
    batch_norm: BatchNorm = "frozen"
    label_smoothing: float = LABEL_SMOOTHING
    hflip: bool | None = None
    input_px: int | None = None

    name: ClassVar[str] = "partial_fine_tune"
    summary: ClassVar[str] = "fine-tuning with the first stages frozen"
    references: ClassVar[tuple[str, ...]] = (
        "D. Soekhoe, P. van der Putten, A. Plaat, On the impact of dataset size in transfer "
        "learning using deep neural networks, IDA 2016",
    )
    selects_on_val: ClassVar[bool] = True

    @classmethod
    def suggest(cls, trial: BaseTrial, dataset: Dataset, backbone: Backbone) -> Self:
        """Sample the number of frozen stages, and what full fine-tuning samples."""
        base = default_steps(len(dataset.train), BATCH_SIZE)
        return cls(
            frozen_stages=trial.suggest_int("frozen_stages", 1, backbone.n_depths - 1),
            lr=trial.suggest_float("lr", 3e-5, 3e-3, log=True),
            blend=trial.suggest_float("blend", 0.25, 1.0),
            head_lr_factor=trial.suggest_float("head_lr_factor", 1.0, 10.0, log=True),
            steps=trial.suggest_int("steps", base // 2, 2 * base),
            batch_norm=cast(
                BatchNorm, trial.suggest_categorical("batch_norm", get_args(BatchNorm))
            ),
            label_smoothing=trial.suggest_float("label_smoothing", 0.0, 0.2),
            hflip=trial.suggest_categorical("hflip", [False, True]),
            input_px=trial.suggest_categorical("input_px", input_sizes(backbone)),
        )

    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Train; keep an earlier round only if it is significantly better on validation."""
        backbone = resized(backbone, self.input_px)
        start = prepare(dataset, backbone, ctx, self.hflip)
        lr = self.lr or start.defaults.lr
        blend = self.blend or start.defaults.blend
        hflip = start.defaults.hflip
        steps, frozen = self._steps(dataset), self._frozen(backbone)
        recipe = Recipe(
            steps=steps,
            lr=lr,
            blend=blend,
            head_lr_factor=self.head_lr_factor,
            batch_norm=self.batch_norm,
            frozen_stages=frozen,
            label_smoothing=self.label_smoothing,
            hflip=hflip,
        )
        network = fine_tune(dataset, backbone, start, recipe, ctx)
        used = replace(
            self,
            lr=lr,
            blend=blend,
            steps=steps,
            frozen_stages=frozen,
            hflip=hflip,
            input_px=backbone.input_px,
        )
        return ImageClassifier(
            dataset.classes,
            backbone,
            (backbone.n_depths,),
            network,
            self.name,
            used.hyperparameters(),
        )

    def image_passes(self, dataset: Dataset, backbone: Backbone) -> float:
        """Return the passes of the probe, of all training steps, and of validation."""
        frozen = backbone.depths[self._frozen(backbone) - 1].flops_share
        scale = (self.input_px or backbone.input_px) / backbone.input_px
        n_train, n_val, steps = len(dataset.train), len(dataset.val), self._steps(dataset)
        reinit = self.batch_norm == "reestimated"
        return training_passes(n_train, n_val, steps, BATCH_SIZE, frozen, scale, reinit=reinit)

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Reject freezing no stage, or all of them."""
        k = self.frozen_stages
        if k is not None and not 1 <= k < backbone.n_depths:
            return f"frozen_stages must be in 1..{backbone.n_depths - 1}, got {k}"
        return None

    def _steps(self, dataset: Dataset) -> int:
        return self.steps or default_steps(len(dataset.train), BATCH_SIZE)

    def _frozen(self, backbone: Backbone) -> int:
        return self.frozen_stages or backbone.n_depths // 2
