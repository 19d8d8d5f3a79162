"""What the data findings rest on, and how they show it."""

from dataclasses import dataclass

from strategies.core.metrics import Scores
from strategies.data.image import Split


@dataclass(frozen=True)
class ProbeEvidence:
    """What the findings rest on, besides the dataset.

    Attributes
    ----------
    images, scores
        Some images of train and validation, and their calibrated out-of-fold scores (n, classes).
    train_features, test_features
        Penultimate activations of some images of both; labels are not needed.
    """

    input_px: int
    images: Split = ()
    scores: Scores | None = None
    train_features: Scores | None = None
    test_features: Scores | None = None
    seed: int = 0
