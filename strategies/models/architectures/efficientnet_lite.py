"""EfficientNet-Lite, the architecture of the embedded backbones, without timm.

Importing timm takes longer than importing torch: it imports torchvision, torch's compiler and its
whole zoo, whatever network is asked for. This module holds what the embedded backbones need of
it. Names of parameters, random initial weights and outputs are those of timm's
``tf_efficientnet_lite0`` to ``2``; a test compares them.

References
----------
M. Tan and Q. Le, EfficientNet: rethinking model scaling for convolutional neural networks, ICML
2019. R. Liu, Higher accuracy on vision models with EfficientNet-Lite, TensorFlow blog, 2020.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

STEM, EXPANSION, WIDTH, BN_EPS = 32, 6, 1280, 1e-3
SOURCE_CLASSES = 1000


@dataclass(frozen=True)
class Scale:
    """Multipliers of the number of channels and of blocks per stage."""

    channels: float
    blocks: float


SCALES: Mapping[str, Scale] = {
    "tf_efficientnet_lite0": Scale(1.0, 1.0),
    "tf_efficientnet_lite1": Scale(1.0, 1.1),
    "tf_efficientnet_lite2": Scale(1.1, 1.2),
}
"""The embedded architectures, by timm's name."""


@dataclass(frozen=True)
class Stage:
    """Blocks, kernel size, stride of the first block, and channels of a stage of Lite0."""

    blocks: int
    kernel: int
    stride: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 16),
    Stage(2, 3, 2, 24),
    Stage(2, 5, 2, 40),
    Stage(3, 3, 2, 80),
    Stage(3, 5, 1, 112),
    Stage(4, 5, 2, 192),
    Stage(1, 3, 1, 320),
)


class SameConv(nn.Conv2d):
    """Convolution with stride 2 that pads as TensorFlow does: the odd pixel right and below."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad to ``ceil(side / stride)`` outputs per side, then convolve."""
        pads = [
            max((math.ceil(side / step) - 1) * step + kernel - side, 0)
            for side, step, kernel in zip(
                input.shape[:-3:-1], self.stride[::-1], self.kernel_size[::-1], strict=True
            )
        ]
        padded = functional.pad(input, [p for pad in pads for p in (pad // 2, pad - pad // 2)])
        return functional.conv2d(
            padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class NormAct(nn.BatchNorm2d):
    """BatchNorm with a ReLU6 after it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=BN_EPS)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, then clip to [0, 6]."""
        activations: Tensor = self.act(super().forward(input))
        return activations


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution with "same" padding and without bias."""
    if stride > 1:
        return SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


class DepthwiseSeparable(nn.Module):
    """Block of the first stage: a depthwise and a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.has_skip = inputs == outputs and stride == 1
        self.conv_dw = _convolution(inputs, inputs, kernel, stride, groups=inputs)
        self.bn1 = NormAct(inputs)
        self.conv_pw = _convolution(inputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps; the block's input is added where the shapes agree."""
        out: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))
        return out + x if self.has_skip else out


class InvertedResidual(nn.Module):
    """Block of the other stages: expansion, depthwise convolution, projection."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = EXPANSION * inputs
        self.has_skip = inputs == outputs and stride == 1
        self.conv_pw = _convolution(inputs, inner, 1)
        self.bn1 = NormAct(inner)
        self.conv_dw = _convolution(inner, inner, kernel, stride, groups=inner)
        self.bn2 = NormAct(inner)
        self.conv_pwl = _convolution(inner, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps; the block's input is added where the shapes agree."""
        inner = self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))
        out: Tensor = self.bn3(self.conv_pwl(inner))
        return out + x if self.has_skip else out


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite with timm's interface, as far as `strategies.models.body` uses it.

    Parameters
    ----------
    initialise
        Whether to draw random weights; not needed where weights are loaded.

    Attributes
    ----------
    feature_info
        Module of every feature level: the last stage of each resolution.
    stage_ends
        Number of this stage, counted from 1, for every level.
    """

    def __init__(self, scale: Scale, *, initialise: bool = True) -> None:
        super().__init__()
        self.conv_stem = _convolution(3, STEM, 3, stride=2)
        self.bn1 = NormAct(STEM)
        for _ in range(2):  # timm tries out a layer here; the same numbers are drawn for it
            nn.Conv2d(8, 8, 1)
        inputs, stages = STEM, []
        for i, stage in enumerate(STAGES):
            inner = 0 < i < len(STAGES) - 1
            blocks = math.ceil(stage.blocks * scale.blocks) if inner else stage.blocks
            outputs = _round_to_eight(stage.channels * scale.channels)
            stages.append(_make_stage(inputs, outputs, blocks, stage))
            inputs = outputs
        self.blocks = nn.Sequential(*stages)
        ends = [i for i in range(len(STAGES)) if i + 1 == len(STAGES) or STAGES[i + 1].stride > 1]
        self.feature_info = [{"module": f"blocks.{i}"} for i in ends]
        self.stage_ends = [i + 1 for i in ends]
        self.conv_head: nn.Module = _convolution(inputs, WIDTH, 1)
        self.bn2: nn.Module = NormAct(WIDTH)
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.classifier: nn.Module = nn.Linear(WIDTH, SOURCE_CLASSES)
        if initialise:
            _initialise(self)

    def get_classifier(self) -> nn.Module:
        """Return the original head."""
        return self.classifier

    def reset_classifier(self, n_classes: int) -> None:
        """Replace the original head by a new one, or by none for 0 classes."""
        self.classifier = nn.Linear(WIDTH, n_classes) if n_classes else nn.Identity()

    def prune_intermediate_layers(self, indices: Sequence[int], *, prune_head: bool) -> None:
        """Remove the stages above the given feature levels; with `prune_head` also the head."""
        last = max(self._ends(indices))
        if prune_head or last < len(self.blocks):
            self.conv_head, self.bn2, self.classifier = nn.Identity(), nn.Identity(), nn.Identity()
        self.blocks = self.blocks[:last]

    def _ends(self, indices: Sequence[int]) -> list[int]:
        """Return the numbers of stages after which the given feature levels lie."""
        return [self.stage_ends[i] for i in indices]

    def forward_intermediates(
        self, x: Tensor, *, indices: Sequence[int], intermediates_only: bool = False
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of some feature levels, after the last feature maps unless excluded."""
        ends = self._ends(indices)
        maps = []
        x = self.bn1(self.conv_stem(x))
        for number, stage in enumerate(self.blocks, start=1):
            x = stage(x)
            if number in ends:
                maps.append(x)
        return maps if intermediates_only else (self.bn2(self.conv_head(x)), maps)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature maps."""
        maps: Tensor = self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(x)))))
        return maps

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Pool the last feature maps, and classify them unless `pre_logits`."""
        pooled: Tensor = self.global_pool(x)
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the pretraining classes."""
        return self.forward_head(self.forward_features(x))


class FlopCounter(AbstractContextManager["FlopCounter"]):
    """Context that counts the FLOPs of a network's convolutions; nothing else of the body counts.

    The counts are those of torch's ``FlopCounterMode``.
    """

    def __init__(self, net: nn.Module) -> None:
        self.convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        self.total = 0

    def __enter__(self) -> "FlopCounter":
        self.handles = [m.register_forward_hook(self._add) for m in self.convolutions]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _add(self, module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        self.total += 2 * output.numel() * module.weight[0].numel()

    def get_total_flops(self) -> int:
        """Return the FLOPs so far."""
        return self.total


def _make_stage(inputs: int, outputs: int, blocks: int, stage: Stage) -> nn.Sequential:
    block = DepthwiseSeparable if stage is STAGES[0] else InvertedResidual
    first = block(inputs, outputs, stage.kernel, stage.stride)
    others = [block(outputs, outputs, stage.kernel, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *others)


def _round_to_eight(channels: float) -> int:
    """Round to a multiple of 8 that is not smaller by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


@torch.no_grad()
def _initialise(net: nn.Module) -> None:
    """Draw random weights as TensorFlow's implementation does: by the fan-out."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            fan_out = height * width * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.out_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)
