"""Measurements that the data findings are computed from."""

from dataclasses import dataclass

from strategies.core.metrics import Scores
from strategies.data.image import Split


@dataclass(frozen=True)
class ProbeEvidence:
    """Probe scores and features that the data findings need in addition to the dataset.

    Attributes
    ----------
    input_px
        Input size of the backbone.
    images, scores
        A sample of train and validation, and its calibrated out-of-fold scores (n, classes).
    train_features, test_features
        Penultimate activations of samples of train (with validation) and of test. The labels of
        test are not used.
    seed
        Seed of the random draws of the findings.
    """

    input_px: int
    images: Split = ()
    scores: Scores | None = None
    train_features: Scores | None = None
    test_features: Scores | None = None
    seed: int = 0
