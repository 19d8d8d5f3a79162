"""The most similar images of a collection, as the classifier of a run sees them."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from advisor.deploy.features import Embedder, classifier_embedder, embed_files
from advisor.deploy.labelled import LabelledFile
from advisor.deploy.predict import list_images, load_classifier
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import image_rows
from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.errors import DataError
from strategies.data.image import Skipped, shown
from strategies.models.classifier import ImageClassifier

By = Literal["classifier", "features"]
TINY = 1e-12


@dataclass(frozen=True)
class Neighbour:
    """A similar image; the label is empty where it is not known.

    Attributes
    ----------
    similarity
        In [-1, 1]; 1 for an image of the same content. Comparable within one classifier.
    """

    path: Path
    label: str
    similarity: float


@dataclass(frozen=True)
class SimilarImages:
    """The most similar images to each query, most similar first.

    Attributes
    ----------
    where
        The images that were searched, as text.
    n_searched
        Number of images that were searched.
    skipped
        Files that cannot be read, with reasons.
    """

    found: tuple[tuple[Path, tuple[Neighbour, ...]], ...]
    where: str
    n_searched: int
    skipped: tuple[Skipped, ...]


def find_similar(
    run: Path,
    given: Iterable[Path],
    ctx: RunContext,
    *,
    folder: Path | None = None,
    k: int = 5,
    by: By = "classifier",
) -> SimilarImages:
    """Find the images that are most similar to given ones among the train images of a run.

    Parameters
    ----------
    given
        Image files, and folders of them.
    folder
        Search all images below this folder instead.
    k
        Number of similar images of each.
    by
        See `descriptors`.

    Raises
    ------
    StorageError
        If there is no readable classifier, or the run does not list its images.
    DataError
        If there is no image, or train images of the run are missing.
    """
    classifier = load_classifier(run, ctx.device)
    if folder is None:
        rows = image_rows(RunDir(run))
        searched = [LabelledFile(r.path, r.label, r.split) for r in rows if r.split == "train"]
        where = f"the train images of {shown(run)}"
    else:
        searched = _files([folder])
        where = shown(folder)
    found = similar_images(classifier, _files(given), searched, ctx, k=k, by=by)
    paths = {file.path for file in searched}
    missing = [s for s in found.skipped if s.path in paths]
    if missing and folder is None:
        first = missing[0]
        raise DataError(
            f"{len(missing):,} of the {len(searched):,} train images of {shown(run)} cannot be "
            f"read any more, e.g. {shown(first.path)}: {first.reason}. Put them back, or search "
            "other images with --in FOLDER."
        )
    return SimilarImages(found.found, where, found.n_searched, found.skipped)


def similar_images(
    classifier: ImageClassifier,
    given: Sequence[LabelledFile],
    searched: Sequence[LabelledFile],
    ctx: RunContext,
    *,
    k: int,
    by: By = "classifier",
) -> SimilarImages:
    """Find the `k` most similar of the searched images to each given one, without itself.

    The searched images are passed some at a time, and no more are held in memory.

    Raises
    ------
    DataError
        If no image can be read.
    """
    embedder = classifier_embedder(classifier, ctx)
    queries, own, skipped = _described(given, embedder, classifier, ctx, by)
    if not queries:
        first = "" if not skipped else f" {shown(skipped[0].path)}: {skipped[0].reason}."
        raise DataError(f"None of the given files is a readable image.{first}")
    where = {os.path.realpath(file.path): i for i, file in enumerate(queries)}
    best = np.empty((len(queries), 0), dtype=np.float32)
    places = np.empty((len(queries), 0), dtype=np.int64)
    known: list[LabelledFile] = []
    for part in embed_files(searched, embedder, ctx):
        skipped += part.skipped
        near = own @ descriptors(part.rows, classifier, by).T
        for column, file in enumerate(part.files):
            if (row := where.get(os.path.realpath(file.path))) is not None:
                near[row, column] = -np.inf
        columns = np.arange(len(known), len(known) + near.shape[1])
        best = np.concatenate([best, near], axis=1)
        places = np.concatenate([places, np.broadcast_to(columns, near.shape)], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(best, order, axis=1)
        places = np.take_along_axis(places, order, axis=1)
        known += part.files
    if not known:
        raise DataError("There is no readable image to search.")
    found = tuple(
        (query.path, _neighbours(best[row], places[row], known))
        for row, query in enumerate(queries)
    )
    return SimilarImages(found, "", len(known), tuple(skipped))


def descriptors(rows: Rows, classifier: ImageClassifier, by: By) -> NDArray[np.float32]:
    """Return vectors of length 1 whose inner products are the similarities of images.

    By "features" it is the cosine of the features that the classifier's head reads. By
    "classifier" it is the mean of that and of the Bhattacharyya coefficient of the class
    probabilities, ``sum(sqrt(p * q))``. So images of which the classifier thinks alike are nearer.

    Parameters
    ----------
    rows
        Features, (n, width), see `features.classifier_embedder`.
    """
    length = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)
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


def similar_record(found: SimilarImages) -> dict[str, Any]:
    """Return similar images as plain JSON values."""
    return {
        "searched": found.where,
        "n_searched": found.n_searched,
        "similar": [
            {
                "path": shown(path),
                "neighbours": [
                    {"path": shown(n.path), "class": n.label or None, "similarity": n.similarity}
                    for n in neighbours
                ],
            }
            for path, neighbours in found.found
        ],
        "quarantine": [{"path": shown(s.path), "reason": s.reason} for s in found.skipped],
    }


def _files(given: Iterable[Path]) -> list[LabelledFile]:
    return [LabelledFile(path, "", "") for path, _ in list_images(given) if isinstance(path, Path)]


def _described(
    files: Sequence[LabelledFile],
    embedder: Embedder,
    classifier: ImageClassifier,
    ctx: RunContext,
    by: By,
) -> tuple[list[LabelledFile], NDArray[np.float32], list[Skipped]]:
    """Return the readable files with their descriptors, and the files that cannot be read."""
    readable: list[LabelledFile] = []
    skipped: list[Skipped] = []
    parts = []
    for part in embed_files(files, embedder, ctx):
        readable += part.files
        skipped += part.skipped
        parts.append(descriptors(part.rows, classifier, by))
    return readable, np.concatenate(parts) if parts else np.empty((0, 0), np.float32), skipped


def _neighbours(
    similarities: NDArray[np.float32], places: NDArray[np.int64], known: Sequence[LabelledFile]
) -> tuple[Neighbour, ...]:
    """Return the neighbours of one image; fewer than asked for if there are not as many."""
    return tuple(
        Neighbour(known[place].path, known[place].label, round(min(float(value), 1.0), 6))
        for value, place in zip(similarities, places.tolist(), strict=True)
        if np.isfinite(value)
    )
