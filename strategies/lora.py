"""LoRA: train low-rank changes of the linear layers and the head, and merge them at the end."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar, final

from optuna.distributions import BaseDistribution, IntDistribution

from strategies.base import VTAB_1K, GainPrior, PublishedGain
from strategies.core.errors import NotApplicable
from strategies.data.dataset import Dataset
from strategies.fine_tuning import FineTuning
from strategies.models.architectures.anatomy import projections
from strategies.models.backbone import Backbone
from strategies.models.network import Network
from strategies.training.defaults import NetworkFacts, scaled_lr
from strategies.training.recipe import Recipe, RecipeDraft

LR = 1e-3
"""Learning rate for batches of 32 images. It was better than 1e-2 on 16 of the 20 datasets of the
VTAB-1k tables (`Lora.fallback_gain`)."""
DRAFT = RecipeDraft(
    blend=1.0,
    label_smoothing=0.1,
    layer_lr_decay=1.0,
    drop_path=0.0,
    weight_decay=0.0,
    lora_rank=8,
)
"""No rank of 1, 8, 16 and 32 was best on more than six of these datasets. The matrices start at a
change of zero and get few steps: weight decay would only pull them back."""
ALPHA_PER_RANK = 2.0
"""Scale of the change: alpha is 16 at rank 8, and grows with the rank."""
MISSING = "it needs the package peft, which is not installed. Run: pip install 'tl-advisor[lora]'"


@final
@dataclass(frozen=True)
class Lora(FineTuning):
    """Fine-tuning of a low-rank change of every linear layer, and of the head (LoRA).

    All other weights are frozen. The linear layers are the projections of attention and of the
    MLPs; in ConvNeXt, 1 x 1 convolutions count as linear layers. After training the changes are
    added to the weights, so that the classifier is an ordinary network.

    Attributes
    ----------
    recipe
        As for full fine-tuning, without what concerns whole layers. `lora_rank` is the rank of
        every change.
    """

    recipe: RecipeDraft = DRAFT

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    references: ClassVar[tuple[str, ...]] = (
        "E. J. Hu et al., LoRA: Low-rank adaptation of large language models, ICLR 2022",
        "Z. Mai et al., Lessons and insights from a unifying study of parameter-efficient "
        "fine-tuning in visual recognition, CVPR 2025",
    )
    fallback_gain: ClassVar[GainPrior] = GainPrior(0.85, 0.85)
    """The published gain on a transformer, for other networks too."""
    transformer_gain: ClassVar[PublishedGain] = PublishedGain(0.85, 0.85, 20, 1000, VTAB_1K)
    """LoRA over a linear probe."""
    tunable: ClassVar[tuple[str, ...]] = (
        "lora_rank",
        "lr",
        "head_lr_factor",
        "steps",
        "label_smoothing",
        "hflip",
    )
    tunable_by_layer: ClassVar[tuple[str, ...]] = ()
    lr_range_by_layer: ClassVar[tuple[float, float]] = (1e-4, 5e-3)

    @classmethod
    def search_space(cls, dataset: Dataset, backbone: Backbone) -> Mapping[str, BaseDistribution]:
        """Return the rank, and what full fine-tuning samples of the other hyperparameters."""
        shared = super().search_space(dataset, backbone)
        own = {k: v for k, v in shared.items() if k in (*cls.tunable, "input_px")}
        return {"lora_rank": IntDistribution(2, 32, log=True), **own}

    def resolved(self, n_train: int, network: NetworkFacts) -> RecipeDraft:
        """Return the recipe with the learning rate `LR`, unless one is set."""
        draft = super().resolved(n_train, network)
        return replace(draft, lr=scaled_lr(LR, draft) if draft.lr is None else draft.lr)

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Reject convolutional networks, a rank below 1, and an installation without peft."""
        if backbone.family == "convolutional":
            return (
                f"it changes the linear layers of transformers and ConvNeXt, and {backbone.name} "
                "is a convolutional network"
            )
        if self.recipe.lora_rank < 1:
            return f"lora_rank must be at least 1, got {self.recipe.lora_rank}"
        return MISSING if find_spec("peft") is None else super().inapplicable(dataset, backbone)

    @contextlib.contextmanager
    def adapted(self, network: Network, backbone: Backbone, recipe: Recipe) -> Iterator[None]:
        """Add the matrices of LoRA to the body; merge them into its weights at the end."""
        peft, net = _peft(), network.body.net
        config = peft.LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=ALPHA_PER_RANK * recipe.lora_rank,
            target_modules=projections(net, backbone.input_px),
        )
        peft.inject_adapter_in_model(config, net)
        yield
        for name, module in list(net.named_modules()):
            if isinstance(module, peft.tuners.lora.LoraLayer):
                layer: Any = module
                layer.merge()
                net.set_submodule(name, layer.get_base_layer())


def _peft() -> Any:
    """Import peft. It takes three times as long as torch, so it is not imported before a fit."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise NotApplicable(f"LoRA is not applicable: {MISSING}") from error
