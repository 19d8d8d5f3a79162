"""What is said about activation maps."""

from strategies.models.explain.class_maps import Method

MISTAKE_WORDS = "where an image speaks for the predicted class rather than the true one"
PREDICTION_WORDS = "where an image speaks for the predicted class"


def map_words(method: Method, meaning: str) -> str:
    """Return the legend of maps: what the colour means, and how far it can be trusted."""
    return f"From little to most: {meaning}. {_FRAME} {_TRUST[method]}"


_FRAME = "What lies outside a white frame was cropped away before the network saw the image."
_TRUST: dict[Method, str] = {
    "CAM": "The maps are exact (CAM): their means are the scores, or differences of scores.",
    "Grad-CAM": "The maps are approximations (Grad-CAM).",
    "CAM and Grad-CAM": "The maps are sums over depths, partly exact (CAM), partly approximations "
    "(Grad-CAM).",
}
