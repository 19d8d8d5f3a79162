"""What an exported file computes for one image."""

from collections.abc import Callable

from strategies.data.decoding import Pixels
from strategies.models.reliability.outputs import Outputs

Predictor = Callable[[Pixels], Outputs]
"""An upright RGB image, uint8 (h, w, 3), to the outputs of that one image."""
