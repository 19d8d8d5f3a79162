"""Comparison of finished runs: facts of each, and paired differences on the same test images."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advisor.deploy.predict import load_classifier
from advisor.measure.paired import mcnemar, paired_gain
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import IMAGES_FILE, image_rows
from strategies.core.context import RunContext
from strategies.core.devices import predict_precision
from strategies.core.errors import StorageError
from strategies.core.metrics import Interval
from strategies.data.image import shown
from strategies.models.classifier import WEIGHTS_FILE, ImageClassifier

TIMED_BATCH, N_TIMED = 8, 5


@dataclass(frozen=True)
class Difference:
    """Paired difference of two runs on the same test images.

    Attributes
    ----------
    to
        The run that it is compared with.
    accuracy
        Its accuracy minus that of `to`, in [-1, 1].
    p_value
        Of McNemar's exact test: how likely a difference like this is if both are equally accurate.
    """

    to: Path
    accuracy: Interval
    p_value: float


@dataclass(frozen=True)
class ComparedRun:
    """A finished run in a comparison.

    Attributes
    ----------
    test
        Accuracy on the run's test images; None without any.
    seconds
        Time that the run took.
    n_bytes
        Size of the classifier's weights.
    ms_per_image
        Milliseconds of a forward pass per image on this machine, without reading the image.
    group
        Number of the runs' set of test images, from 1; runs of one group have the same. None if
        the run has no test images or does not list them.
    difference
        To the best run of the group; None for that run itself.
    """

    run: Path
    strategy: str
    backbone: str
    input_px: int
    test: Interval | None
    n_test: int
    n_trials: int
    seconds: float
    n_bytes: int
    ms_per_image: float
    group: int | None
    difference: Difference | None


@dataclass(frozen=True)
class _Tested:
    """Digests with labels of evaluated test images in a fixed order, and which are correct."""

    images: tuple[tuple[str, str], ...]
    hits: NDArray[np.bool_]


def compare_runs(runs: Sequence[Path], ctx: RunContext) -> tuple[ComparedRun, ...]:
    """Compare finished runs; the one with the highest test accuracy is first.

    Raises
    ------
    StorageError
        If a folder is no finished run.
    """
    found = []
    for number, run in enumerate(runs, start=1):
        found.append(_facts(run, ctx))
        ctx.reporter.on_progress("runs", number, len(runs))
    found.sort(key=lambda pair: -1.0 if pair[0].test is None else pair[0].test.mid, reverse=True)
    return _with_differences(found)


def _facts(run: Path, ctx: RunContext) -> tuple[ComparedRun, _Tested | None]:
    folder = RunDir.open(run)
    if not folder.is_done():
        raise StorageError(f"{run} is not finished. Finish it with tl-auto resume {run}.")
    outcome = folder.read("outcome.json")
    classifier = load_classifier(run, ctx.device)
    test = outcome["test_accuracy"]
    compared = ComparedRun(
        run=run,
        strategy=outcome["best"]["strategy"],
        backbone=classifier.backbone.name,
        input_px=classifier.backbone.input_px,
        test=None if test is None else Interval(**test),
        n_test=0 if test is None else outcome["test"]["n"],
        n_trials=outcome["n_trials"],
        seconds=outcome["seconds"],
        n_bytes=(folder.classifier() / WEIGHTS_FILE).stat().st_size,
        ms_per_image=_ms_per_image(classifier),
        group=None,
        difference=None,
    )
    return compared, _tested(folder)


def _ms_per_image(classifier: ImageClassifier) -> float:
    """Time some batches of noise after a warm-up; return the fastest, the least disturbed one."""
    px = classifier.backbone.input_px
    pixels = np.random.default_rng(0).integers(0, 256, (TIMED_BATCH, px, px, 3), dtype=np.uint8)
    precision, taken = predict_precision(classifier.device), []
    for _ in range(1 + N_TIMED):
        begun = time.perf_counter()
        classifier.classify(pixels, precision)
        taken.append(time.perf_counter() - begun)
    return 1000 * min(taken[1:]) / TIMED_BATCH


def _tested(folder: RunDir) -> _Tested | None:
    if not (folder.path / IMAGES_FILE).is_file():
        return None
    rows = sorted(
        (row.digest, row.label, row.predicted == row.label)
        for row in image_rows(folder)
        if row.predicted is not None
    )
    if not rows:
        return None
    images = tuple((digest, label) for digest, label, _ in rows)
    return _Tested(images, np.array([hit for _, _, hit in rows]))


def _with_differences(
    found: Sequence[tuple[ComparedRun, _Tested | None]],
) -> tuple[ComparedRun, ...]:
    best: dict[tuple[tuple[str, str], ...], tuple[int, ComparedRun, _Tested]] = {}
    compared = []
    for run, tested in found:
        if tested is None:
            compared.append(run)
            continue
        number, first, of_first = best.setdefault(tested.images, (len(best) + 1, run, tested))
        difference = None if first is run else _difference(first.run, tested, of_first)
        compared.append(replace(run, group=number, difference=difference))
    return tuple(compared)


def _difference(to: Path, tested: _Tested, of_best: _Tested) -> Difference:
    pair = tested.hits, of_best.hits
    return Difference(to, paired_gain(*pair), mcnemar(*pair))


def comparison_record(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Return a comparison as plain JSON values."""
    records = []
    for run in runs:
        record = asdict(run)
        record["run"] = shown(run.run)
        if run.difference is not None:
            record["difference"]["to"] = shown(run.difference.to)
        records.append(record)
    return {"runs": records}
