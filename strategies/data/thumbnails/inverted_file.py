"""Search for similar vectors without comparing all pairs."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from strategies.data.thumbnails.vectors import Rows, Vectors, chunks

PIVOTS, PROBES = 4, 32
"""Number of pivots as a multiple of the square root of n, and how many of them a query probes. Of
200,000 images, this finds all of 8,000 copies that were encoded again, reduced, brightened or
turned by one degree (docs/benchmarks/speed.md). Of weaker pairs it may miss some."""


def similar_rows(
    queries: Vectors, database: Vectors, n_images: int, seed: int
) -> Iterator[tuple[Rows, Rows]]:
    """Yield blocks (rows of queries, rows of the database) that hold most of the similar pairs.

    Random rows among the first `n_images` of the database are the pivots, `PIVOTS` times the
    square root of `n_images`. Every row of the database belongs to the most similar pivot, and a
    query is compared with the rows of its `PROBES` most similar ones. So the number of products
    grows with the power 1.5 of n. Zero vectors are left out.

    References
    ----------
    J. Sivic, A. Zisserman, Video Google: a text retrieval approach to object matching in videos,
    ICCV 2003 (the inverted file).
    """
    usable = np.flatnonzero(database.any(axis=1))
    candidates = usable[usable < n_images]
    n_pivots = min(len(candidates), int(PIVOTS * np.sqrt(n_images)))
    if not n_pivots:
        return
    rng = np.random.default_rng(seed)
    pivots = database[rng.choice(candidates, n_pivots, replace=False)]
    own = np.empty(len(usable), dtype=np.int32)
    for part in chunks(len(usable)):
        own[part] = np.argmax(database[usable[part]] @ pivots.T, axis=1)
    asking = np.flatnonzero(queries.any(axis=1))
    n_probes = min(PROBES, n_pivots)
    probed = np.empty((len(asking), n_probes), dtype=np.int32)
    for part in chunks(len(asking)):
        distance = -queries[asking[part]] @ pivots.T
        probed[part] = np.argpartition(distance, n_probes - 1, axis=1)[:, :n_probes]
    members = np.split(usable[np.argsort(own, kind="stable")], _ends(own, n_pivots))
    by_pivot = np.argsort(probed, axis=None, kind="stable") // n_probes
    visitors = np.split(asking[by_pivot], _ends(probed, n_pivots))
    for rows, columns in zip(visitors, members, strict=True):
        if len(columns):
            yield from ((rows[part], columns) for part in chunks(len(rows)))


def _ends(numbers: NDArray[np.int32], n: int) -> Rows:
    """Return where the sorted numbers 0, 1, ..., n - 2 end, for ``np.split``."""
    return np.cumsum(np.bincount(numbers.ravel(), minlength=n))[:-1]
