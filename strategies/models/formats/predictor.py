"""What an exported file computes for one image."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from strategies.data.decoding import Pixels

Predictor = Callable[[Pixels], NDArray[np.float32]]
"""An upright RGB image, uint8 (h, w, 3), to its class probabilities, float32 (classes,)."""
