"""Preprocessing of images as a torch module: resizing and cropping inside an exported graph.

Pillow resizes an image by one weighted sum per row and one per column. Both are products with a
matrix of weights here, which depends on the size of the image. So an exported network takes
images of any size, and gets the same pixels as the program itself.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from strategies.models.backbone import Backbone

ONE = 1 << 22
"""A weight of 1 in Pillow's whole numbers: 32 bits less 8 of a pixel, and 2 for overflow."""


class Preprocessing(nn.Module):
    """Crops, resizes and normalises images as `EvaluationCrop` and `normalised` do.

    The pixels are those of Pillow's ``Image.resize`` (Pillow, src/libImaging/Resample.c) on every
    processor: the kernel is widened where an image is made smaller, and its weights sum to 1. They
    are rounded to whole numbers, so every sum is exact in double precision, in any order. Pixels
    are rounded after the first of the two sums, too. That is the one along the rows, but in images
    that lose more than twice as many rows as columns (Pillow 13, pull request 9549). With
    "nearest", the other pixel may be taken at an exact boundary of two.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        crop = backbone.evaluation_crop
        self.px, self.mode = crop.px, crop.mode
        self.scaled = int(crop.px / crop.crop_pct)
        self.interpolation = crop.interpolation
        fill = [float(round(255 * value)) for value in crop.fill]
        self.register_buffer("fill", torch.tensor(fill).view(1, 3, 1, 1), persistent=False)
        for name, values in (("mean", backbone.mean), ("std", backbone.std)):
            buffer = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    fill: Tensor
    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised crops, float32 (n, 3, px, px).

        Parameters
        ----------
        images
            Upright RGB images of one size, uint8 (n, height, width, 3).
        """
        return (self.crops(images) / 255 - self.mean) / self.std

    def crops(self, images: Tensor) -> Tensor:
        """Return the crops, whole numbers from 0 to 255 as float32 (n, 3, px, px)."""
        _, height, width, _ = images.shape
        columns, is_across = self._weights(width, height)
        rows, is_down = self._weights(height, width)
        less_down, less_across = height - is_down.sum(), width - is_across.sum()
        rows_first = (less_down > 0) & (less_down > 2 * less_across)
        resizing = (images.permute(0, 3, 1, 2), rows, columns)
        if torch.compiler.is_exporting():
            found = torch.cond(rows_first, _rows_first, _columns_first, resizing)
        else:
            found = (_rows_first if rows_first else _columns_first)(*resizing)
        return torch.where(is_down.unsqueeze(1) & is_across, found, self.fill)

    def _weights(self, side: int, other: int) -> tuple[Tensor, Tensor]:
        """Return weights along one side, (px, side), and which of the px pixels are no border.

        The weights are whole numbers: a weight of 1 is `ONE`.
        """
        resized, begin = self._grid(*(torch.full((), s) for s in (side, other)))
        first, last = begin.clamp(min=0), torch.minimum(begin + self.px, resized)
        across = side / resized
        start = (first * across).float()  # Pillow holds boxes in single precision
        step = ((last * across).float() - start).double() / (last - first)
        pixel = torch.arange(self.px, device=self.mean.device) + begin - first
        centre = start.double() + (pixel + 0.5) * step
        position = torch.arange(side, device=self.mean.device).double()
        if self.interpolation == "nearest":
            weights = (position == centre.floor().unsqueeze(1)).double()
        else:
            kernel = _KERNELS[self.interpolation]
            distance = position - centre.unsqueeze(1) + 0.5
            weights = kernel(distance * (1 / step.clamp(min=1.0)))
            weights = weights / weights.sum(dim=1, keepdim=True)
        return _rounded(weights * ONE), (pixel >= 0) & (pixel < last - first)

    def _grid(self, side: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many pixels a resized side has, and at which of them the crop begins."""
        px, scaled = self.px, self.scaled
        if self.mode == "border":
            ratio = torch.maximum(side, other).double() / scaled
            resized = (side.double() / ratio).round().clamp(min=1)
            surplus = resized - px
            return resized, torch.where(surplus >= 0, (surplus / 2).round(), (surplus / 2).ceil())
        shown = torch.full_like(side, scaled)
        if self.mode == "center":
            shown = torch.where(side <= other, shown, scaled * side // other)
        resized = shown.double()
        return resized, ((resized - px) / 2).round()


def _columns_first(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _pixels(rows @ _pixels(images.double() @ columns.T)).float().contiguous()


def _rows_first(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _pixels(_pixels(rows @ images.double()) @ columns.T).float().contiguous()


def _pixels(sums: Tensor) -> Tensor:
    return ((sums + ONE // 2) / ONE).floor().clamp(0, 255)


def _rounded(values: Tensor) -> Tensor:
    """Round to whole numbers, halves away from zero."""
    return torch.where(values < 0, (values - 0.5).ceil(), (values + 0.5).floor())


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:
    """Return R. Keys' cubic convolution with a = -0.5."""
    a, x = -0.5, x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: Tensor) -> Tensor:
    """Return sin(pi x) / (pi x). ``torch.sinc`` has no ONNX operator."""
    at_zero = x == 0
    angle = math.pi * torch.where(at_zero, 1.0, x)
    return torch.where(at_zero, 1.0, angle.sin() / angle)


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
}
