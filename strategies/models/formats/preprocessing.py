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


class Preprocessing(nn.Module):
    """Crops, resizes and normalises images as `EvaluationCrop` and `normalised` do.

    The pixels are those of Pillow's ``Image.resize`` (Pillow, src/libImaging/Resample.c): the
    kernel is widened where an image is made smaller, and its weights sum to 1. Pixels are rounded
    after the first of the two sums, too. That is the one along the rows, but in images that lose
    more than twice as many rows as columns (Pillow 13, pull request 9549). Only pixels that lie
    half-way between two values may be rounded otherwise, mostly by one level. With "nearest", the
    other pixel may be taken at an exact boundary of two.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        crop = backbone.evaluation_crop
        self.px, self.mode = crop.px, crop.mode
        self.scaled = int(crop.px / crop.crop_pct)
        self.interpolation = crop.interpolation
        fill = [float(round(255 * value)) for value in crop.fill]
        self.register_buffer("fill", torch.tensor(fill).view(1, 1, 1, 3), persistent=False)
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
        crops = self.crops(images).permute(0, 3, 1, 2)
        return (crops / 255 - self.mean) / self.std

    def crops(self, images: Tensor) -> Tensor:
        """Return the crops, whole numbers from 0 to 255 as float32 (n, px, px, 3)."""
        _, height, width, _ = images.shape
        columns, is_across = self._weights(width, height)
        rows, is_down = self._weights(height, width)
        less_down, less_across = height - is_down.sum(), width - is_across.sum()
        rows_first = (less_down > 0) & (less_down > 2 * less_across)
        resizing = (images, rows, columns)
        if torch.compiler.is_exporting():
            found = torch.cond(rows_first, _rows_first, _columns_first, resizing)
        else:
            found = (_rows_first if rows_first else _columns_first)(*resizing)
        inside = is_down.view(1, -1, 1, 1) & is_across.view(1, 1, -1, 1)
        return torch.where(inside, found, self.fill)

    def _weights(self, side: int, other: int) -> tuple[Tensor, Tensor]:
        """Return weights along one side, (px, side), and which of the px pixels are no border."""
        start, step, is_inside = self._grid(*(torch.full((), s) for s in (side, other)))
        pixel = torch.arange(self.px, device=self.mean.device)
        centre = start + (pixel + 0.5).double() * step
        position = torch.arange(side, device=self.mean.device)
        if self.interpolation == "nearest":
            weights = (position == centre.floor().unsqueeze(1)).double()
        else:
            kernel = _KERNELS[self.interpolation]
            spread = step.clamp(min=1.0)
            distance = (position + 0.5).double() - centre.unsqueeze(1)
            weights = kernel(distance / spread)
            weights = weights / weights.sum(dim=1, keepdim=True)
        return weights.float(), is_inside(pixel)

    def _grid(
        self, side: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return where the crop begins, the step from pixel to pixel, and what is no border.

        Start and step are in pixels of the image.
        """
        px, scaled = self.px, self.scaled
        if self.mode == "squash":
            first = round((scaled - px) / 2)
            step = side.double() / scaled
            return first * step, step, _everywhere
        if self.mode == "border":
            ratio = torch.maximum(side, other).double() / scaled
            resized = (side.double() / ratio).round().clamp(min=1)
            surplus = resized - px
            begin = torch.where(surplus >= 0, (surplus / 2).round(), (surplus / 2).ceil())
            step = side.double() / resized
            return (
                begin * step,
                step,
                lambda pixel: (pixel + begin >= 0) & (pixel + begin < resized),
            )
        resized = torch.where(side <= other, scaled, scaled * side // other).double()
        begin = ((resized - px) / 2).round()
        step = side.double() / resized
        return begin * step, step, _everywhere


def _columns_first(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    found = _rounded(torch.einsum("ix,nyxc->nyic", columns, images.float()))
    return _rounded(torch.einsum("jy,nyic->njic", rows, found)).contiguous()


def _rows_first(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    found = _rounded(torch.einsum("jy,nyxc->njxc", rows, images.float()))
    return _rounded(torch.einsum("ix,njxc->njic", columns, found)).contiguous()


def _everywhere(pixel: Tensor) -> Tensor:
    return pixel >= 0


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


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
