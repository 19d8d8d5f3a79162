"""The most similar of some known images, as a classifier sees them."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.core.cache import Rows, as_stored, space_name
from strategies.core.context import RunContext
from strategies.data.image import Split
from strategies.models.architectures.pretrained import weights_digest
from strategies.models.classifier import ImageClassifier
from strategies.models.network import outputs_of

By = Literal["classifier", "features"]
_FORMAT = 1
_TINY = 1e-12


def classifier_rows(classifier: ImageClassifier, ctx: RunContext) -> Callable[[Split], Rows]:
    """Return what computes the features that a classifier's head reads, (n, width).

    They are cached by content, in the precision of float16.
    """
    backbone, body = classifier.backbone, classifier.network.body
    width = classifier.network.head.in_features
    weights = weights_digest({k: v.cpu() for k, v in body.state_dict().items()})
    about = [weights, classifier.depths, classifier.pooling, *backbone.preprocessing]
    space = space_name(["classifier features", _FORMAT, *about, ctx.precision])

    def rows(images: Split) -> Rows:
        digests = [image.digest for image in images]
        matrix, found = ctx.cache.read_features(space, digests, width)
        missing = {digests[i]: images[i].path for i in np.flatnonzero(~found)}
        if missing:
            computed = outputs_of(body, list(missing.values()), backbone, ctx)
            new = dict(zip(missing, as_stored(computed), strict=True))
            ctx.cache.put_features(space, new)
            for i in np.flatnonzero(~found):
                matrix[i] = new[digests[i]]
        return matrix

    return rows


def descriptors(rows: Rows, classifier: ImageClassifier, by: By) -> NDArray[np.float32]:
    """Return vectors of length 1 whose inner products are the similarities of images.

    By "features" it is the cosine of the features that the classifier's head reads. By
    "classifier" it is the mean of that and of the Bhattacharyya coefficient of the class
    probabilities, ``sum(sqrt(p * q))``. So images of which the classifier thinks alike are nearer.

    Parameters
    ----------
    rows
        Features, (n, width), see `classifier_rows`.
    """
    length = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)
    unit: NDArray[np.float32] = rows / length
    if by == "features":
        return unit
    head = classifier.network.head
    with torch.inference_mode():
        scores = head(torch.from_numpy(rows).to(head.weight.device))
        probabilities = scores.softmax(dim=1).cpu().numpy()
    joined = np.concatenate([unit, np.sqrt(probabilities)], axis=1)
    joined /= np.float32(np.sqrt(2))
    return joined


class NearestRows:
    """The `k` rows of largest inner product with each query, out of rows given in parts.

    Attributes
    ----------
    similarities, places
        Both (n queries, at most k), best first; a place is the row's number over all parts.
    """

    def __init__(self, queries: NDArray[np.float32], k: int) -> None:
        self.queries, self.k, self.n_rows = queries, k, 0
        self.similarities = np.empty((len(queries), 0), dtype=np.float32)
        self.places = np.empty((len(queries), 0), dtype=np.int64)

    def add(self, rows: NDArray[np.float32], same: NDArray[np.int64] | None = None) -> None:
        """Consider more rows, (n, width).

        Parameters
        ----------
        same
            Pairs (query, row of this part) of the same image, (m, 2), which do not count.
        """
        near = self.queries @ rows.T
        if same is not None and len(same):
            near[same[:, 0], same[:, 1]] = -np.inf
        columns = np.arange(self.n_rows, self.n_rows + len(rows))
        best = np.concatenate([self.similarities, near], axis=1)
        places = np.concatenate([self.places, np.broadcast_to(columns, near.shape)], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, : self.k]
        self.similarities = np.take_along_axis(best, order, axis=1)
        self.places = np.take_along_axis(places, order, axis=1)
        self.n_rows += len(rows)
