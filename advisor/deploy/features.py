"""Penultimate features of images: of a pretrained backbone, or of the classifier of a run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from advisor.deploy.labelled import LabelledFile
from advisor.deploy.predict import CHUNK
from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.progress import ignore
from strategies.data.image import Skipped, Split
from strategies.data.inspection import read_images
from strategies.models.backbone import load_backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.explain.nearest import classifier_rows
from strategies.models.features import pooled_features


@dataclass(frozen=True)
class Embedder:
    """What computes the features of images.

    Attributes
    ----------
    name
        What the features are of, as text.
    width
        Number of features of an image.
    rows
        Returns the features of readable images, (n, width). They are cached by content, in the
        precision of float16.
    """

    name: str
    input_px: int
    width: int
    rows: Callable[[Split], Rows]


@dataclass(frozen=True)
class Embedded:
    """Features of some images, (n, width), with their files, and the files that were left out."""

    files: tuple[LabelledFile, ...]
    images: Split
    rows: Rows
    skipped: tuple[Skipped, ...]


def backbone_embedder(name: str, input_px: int | None, ctx: RunContext) -> Embedder:
    """Return what computes the penultimate activations of a pretrained network.

    Raises
    ------
    BackboneError
        If the name is unknown, or the network does not take this input size.
    """
    backbone = load_backbone(name, input_px=input_px, on_progress=ctx.reporter.on_progress)
    quiet = replace(ctx, reporter=replace(ctx.reporter, on_progress=ignore))

    def rows(images: Split) -> Rows:
        return pooled_features(images, backbone, quiet, [backbone.n_depths])

    return Embedder(backbone.name, backbone.input_px, backbone.depths[-1].channels, rows)


def classifier_embedder(classifier: ImageClassifier, ctx: RunContext) -> Embedder:
    """Return what computes the features that the head of a classifier reads."""
    return Embedder(
        f"the classifier ({classifier.strategy})",
        classifier.backbone.input_px,
        classifier.network.head.in_features,
        classifier_rows(classifier, ctx),
    )


def embed_files(
    files: Sequence[LabelledFile], embedder: Embedder, ctx: RunContext
) -> Iterator[Embedded]:
    """Yield the features of image files, `CHUNK` files at a time, in their order."""
    remaining, done = iter(files), 0
    while chunk := tuple(islice(remaining, CHUNK)):
        # The label of an image that is read is its number here: unreadable files have none.
        numbered = [(file.path, number) for number, file in enumerate(chunk)]
        images, bad = read_images(numbered, ctx.n_workers, ctx.cache)
        rows = np.empty((0, embedder.width), np.float32)
        if images:
            rows = embedder.rows(images)
        done += len(chunk)
        ctx.reporter.on_progress("features", done, len(files))
        readable = tuple(chunk[image.label] for image in images)
        yield Embedded(readable, images, rows, tuple(bad))
