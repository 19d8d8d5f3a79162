"""What the data findings rest on, and how they show it."""

from dataclasses import dataclass

from strategies.core.metrics import Scores
from strategies.data.image import Split


@dataclass(frozen=True)
class Measured:
    """What the findings rest on, besides the task.

    Attributes
    ----------
    pictures, scores
        Some pictures of train and val, and their calibrated out-of-fold scores (n, classes).
    train_features, test_features
        Penultimate activations of some pictures of both; labels are not needed.
    """

    input_px: int
    pictures: Split = ()
    scores: Scores | None = None
    train_features: Scores | None = None
    test_features: Scores | None = None
    seed: int = 0
