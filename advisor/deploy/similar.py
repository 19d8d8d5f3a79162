"""The most similar images of a collection, as the classifier of a run sees them."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advisor.deploy.features import classifier_embedder, embed_files
from advisor.deploy.labelled import LabelledFile
from advisor.deploy.predict import list_images, load_classifier
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import image_rows
from strategies.core.context import RunContext
from strategies.core.errors import DataError
from strategies.data.image import Skipped, shown
from strategies.models.classifier import ImageClassifier
from strategies.models.explain.nearest import By, NearestRows, descriptors


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
    queries, own, skipped = _described(given, classifier, ctx, by)
    if not queries:
        first = "" if not skipped else f" {shown(skipped[0].path)}: {skipped[0].reason}."
        raise DataError(f"None of the given files is a readable image.{first}")
    found = nearest_files(
        [file.path for file in queries], own, searched, classifier, ctx, k=k, by=by
    )
    return replace(found, skipped=(*skipped, *found.skipped))


def nearest_files(
    paths: Sequence[Path],
    own: NDArray[np.float32],
    searched: Sequence[LabelledFile],
    classifier: ImageClassifier,
    ctx: RunContext,
    *,
    k: int,
    by: By = "classifier",
) -> SimilarImages:
    """Find the `k` most similar of the searched images to each image of known features.

    The searched images are passed some at a time, and no more are held in memory.

    Parameters
    ----------
    paths, own
        The given images and their `descriptors`. An image is not similar to itself.

    Raises
    ------
    DataError
        If none of the searched images can be read.
    """
    of_path: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        of_path.setdefault(os.path.realpath(path), []).append(number)
    nearest = NearestRows(own, k)
    known: list[LabelledFile] = []
    skipped: list[Skipped] = []
    for part in embed_files(searched, classifier_embedder(classifier, ctx), ctx):
        same = [
            (query, row)
            for row, file in enumerate(part.files)
            for query in of_path.get(os.path.realpath(file.path), ())
        ]
        nearest.add(descriptors(part.rows, classifier, by), np.array(same, np.int64))
        known += part.files
        skipped += part.skipped
    if not known:
        raise DataError("There is no readable image to search.")
    found = tuple(
        (path, _neighbours(nearest.similarities[row], nearest.places[row], known))
        for row, path in enumerate(paths)
    )
    return SimilarImages(found, "", len(known), tuple(skipped))


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
    files: Sequence[LabelledFile], classifier: ImageClassifier, ctx: RunContext, by: By
) -> tuple[list[LabelledFile], NDArray[np.float32], list[Skipped]]:
    """Return the readable files with their descriptors, and the files that cannot be read."""
    readable: list[LabelledFile] = []
    skipped: list[Skipped] = []
    parts = []
    for part in embed_files(files, classifier_embedder(classifier, ctx), ctx):
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
