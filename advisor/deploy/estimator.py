"""A scikit-learn classifier of images: the advised strategy, fitted within a time."""

import inspect
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from advisor.deploy.given_images import (
    InputError,
    class_names,
    encoded_labels,
    image_list,
    write_manifest,
)
from advisor.deploy.predict import not_calibrated
from advisor.report.from_json import read_advice
from advisor.report.to_json import advice_record
from advisor.tune.driver import auto
from advisor.types.options import AUTO, Options, RunOptions
from advisor.types.outcome import Outcome
from strategies.core.atomic_files import write_json
from strategies.core.devices import make_device, predict_precision
from strategies.core.errors import DataError, OutOfTime, StorageError, TransferError
from strategies.core.limits import usable_cpus
from strategies.models.classifier import ImageClassifier
from strategies.models.reliability.outputs import Outputs
from strategies.models.reliability.reliability import (
    COVERAGE,
    FALSE_ALARMS,
    Reliability,
    check_coverage,
)

FORMAT_VERSION = 1
RECORD_FILE, ADVICE_FILE = "estimator.json", "advice.json"
MIN_TIME_S = 1.0
T = TypeVar("T")


class TransferClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Image classifier that adapts a pretrained network, chosen by measuring the images.

    `fit` measures the images, chooses a strategy (a linear probe, fine-tuning, ...) and fits it.
    It learns from all images that it is given: a fifth of them is held out to validate
    hyperparameters, and no test images are. Measure the accuracy on new images with `score`, or
    with scikit-learn's `cross_val_score`. `GridSearchCV` works over every parameter.

    Images, `X`, are a sequence of paths, of PIL images, or of arrays of uint8 with shape
    (h, w, 3) or (h, w), of any sizes; or one array of images, (n, h, w, 3) or (n, h, w). Files are
    read where they are. Labels, `y`, are strings, integers or booleans; `predict` returns the
    same.

    Parameters
    ----------
    backbone
        A timm model name, ``hf-hub:...`` or ``local-dir:...``; "auto": the embedded network.
        Several, separated by commas, are compared and the best one is used.
    strategy
        Name of a strategy; None: the advised one; "auto": the advised one and those that may beat
        it, as in `auto`. With "auto" give several `trials`.
    input_px
        Side of the network's input; None: by the backbone and the size of the images.
    time_s
        Limit of a fit in seconds. The advice is for this time: more may change the strategy. The
        default is for a fit within cross-validation. For a single fit on a CPU, 600 is better.
    trials
        Settings of hyperparameters that are tried, each validated. 1: those that the advice
        begins with. None: as many as the time allows, so that every fit takes all of it.
    device
        auto, cpu, cuda, cuda:N or mps.
    random_state
        Seed of splits and training. A call with the same seed on the same machine gives the same
        classifier, unless a limit of time cut it short.
    verbose
        Whether to show progress.

    Attributes
    ----------
    classes_
        The labels, sorted.
    classifier_
        The fitted `ImageClassifier`.
    advice_
        The `Advice` that it was fitted by.
    outcome_
        The `Outcome` of the fit, with its trials; not after `load`. Its run folder is deleted.

    Examples
    --------
    >>> from sklearn.model_selection import cross_val_score
    >>> scores = cross_val_score(TransferClassifier(time_s=60), paths, labels)  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = AUTO,
        strategy: str | None = None,
        *,
        input_px: int | None = None,
        time_s: float = 120.0,
        trials: int | None = 1,
        device: str = AUTO,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.backbone = backbone
        self.strategy = strategy
        self.input_px = input_px
        self.time_s = time_s
        self.trials = trials
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> Self:
        """Measure the images, choose a strategy, and fit it to all of them.

        Images in memory are written to a temporary folder, without loss.

        Raises
        ------
        InputError
            If images, labels or a parameter cannot be used. It is a ValueError.
        OutOfTime
            If the time was too short for any classifier.
        """
        start_s = time.monotonic()
        classes, codes = encoded_labels(y)
        images = image_list(X)
        if len(images) != len(codes):
            raise InputError(f"X has {len(images):,} images and y has {len(codes):,} labels.")
        names = class_names(classes)
        with tempfile.TemporaryDirectory(prefix="tl-advisor-") as folder:
            manifest = write_manifest(images, codes.tolist(), names, Path(folder))
            outcome = self._run(manifest, Path(folder) / "run", start_s)
            self.classifier_ = ImageClassifier.load(
                outcome.folder / "classifier", make_device(self.device)
            )
        self.classes_, self._names = classes, names
        self.outcome_, self.advice_ = outcome, outcome.advice
        return self

    def _run(self, manifest: Path, folder: Path, start_s: float) -> Outcome:
        """Run the search on the images of a manifest, in the time left since `start_s`."""
        is_advised = self.strategy is None
        try:
            options = Options(
                backbone=self.backbone,
                strategy=AUTO if self.strategy is None else self.strategy,
                input_px=None if self.input_px is None else int(self.input_px),
                device=self.device,
                seed=self._seed(),
                hold_out_test=False,
                max_quarantine=0.0,
            )
            run = RunOptions(
                time_s=max(self.time_s - (time.monotonic() - start_s), MIN_TIME_S),
                max_trials=None if self.trials is None else int(self.trials),
                control=False,
                advised_only=is_advised,
                report=False,
            )
            return auto(manifest, folder, options, run, show_progress=self.verbose)
        except (OutOfTime, StorageError):
            raise
        except TransferError as error:
            raise InputError(str(error)) from error

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probabilities of the classes, (n, classes), in the order of `classes_`.

        Raises
        ------
        NotFittedError
            Before `fit`.
        InputError
            If an image cannot be read. It is a ValueError.
        """
        found = self._outputs(X).probabilities
        probabilities: NDArray[np.float64] = found[:, self._columns()].astype(np.float64)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        return probabilities

    def _outputs(self, X: Any) -> Outputs:
        check_is_fitted(self)
        images, classifier = image_list(X), self.classifier_
        try:
            return classifier.predict_outputs(
                images,
                n_workers=max(2, usable_cpus()),
                precision=predict_precision(classifier.device),
            )
        except DataError as error:
            raise InputError(str(error)) from error

    def _columns(self) -> list[int]:
        """Return the classifier's columns in the order of `classes_`."""
        return [self.classifier_.classes.index(name) for name in self._names]

    def is_unknown(self, X: Any, false_alarms: float = FALSE_ALARMS) -> NDArray[np.bool_]:
        """Return which images are unlike the training images, (n,): perhaps of no known class.

        Parameters
        ----------
        false_alarms
            Share of images like the training images that may be called unknown, above 0 and below
            1. It is calibrated on images that the classifier did not learn, see `Reliability`.

        Raises
        ------
        NotFittedError
            Before `fit`.
        InputError
            If an image cannot be read, the rate is out of range or needs more images than were
            held out, or the fit had no time or too few images to calibrate it.
        """
        threshold = self._asked(lambda found: found.threshold(false_alarms))
        outputs = self._outputs(X)
        assert outputs.unknown is not None
        unknown: NDArray[np.bool_] = outputs.unknown > threshold
        return unknown

    def predict_sets(self, X: Any, coverage: float = COVERAGE) -> NDArray[np.bool_]:
        """Return which classes each image may be of, (n, classes), in the order of `classes_`.

        A set holds the class of an image like the training images with a probability of at least
        `coverage`, on average over such images, and always the most probable class. With fewer
        than about 100 held-out images, do not rely on it (`Reliability.promises_sets`).

        Parameters
        ----------
        coverage
            Above 0 and below 1.

        Raises
        ------
        NotFittedError
            Before `fit`.
        InputError
            If an image cannot be read, the coverage is out of range, or the fit had no time or
            too few images to calibrate sets.
        """
        self._asked(lambda _: check_coverage(coverage))
        found = self._outputs(X).probabilities
        sets = self._asked(lambda known: known.prediction_sets(found, coverage))
        return sets[:, self._columns()]

    def _asked(self, answer: Callable[[Reliability], T]) -> T:
        """Return an answer of the classifier's reliability."""
        check_is_fitted(self)
        if self.classifier_.reliability is None:
            raise InputError(not_calibrated(self.classifier_))
        try:
            return answer(self.classifier_.reliability)
        except TransferError as error:
            raise InputError(str(error)) from error

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable label of every image, (n,), of the type of `y`."""
        probabilities = self.predict_proba(X)
        labels: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return labels

    def __sklearn_tags__(self) -> Any:
        """Say to scikit-learn that images are no table of numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    def save(self, folder: Path | str) -> None:
        """Write the fitted classifier to a folder: JSON and safetensors, which `load` reads.

        The folder is whole: another machine needs neither the backbone's weights nor a network.
        ``tl-auto predict`` reads it too.

        Raises
        ------
        NotFittedError
            Before `fit`.
        StorageError
            If the folder cannot be written, or the labels are of a type that JSON has not.
        """
        check_is_fitted(self)
        folder = Path(folder)
        parameters = self.get_params()
        if not isinstance(self.random_state, int | np.integer):
            parameters["random_state"] = None  # a generator has no place in JSON
        record = {
            "format_version": FORMAT_VERSION,
            "parameters": {name: _plain(value) for name, value in parameters.items()},
            "labels": [_plain(label) for label in self.classes_.tolist()],
            "dtype": self.classes_.dtype.str,
            "names": self._names,
        }
        self.classifier_.save(folder)
        write_json(folder / ADVICE_FILE, advice_record(self.advice_))
        write_json(folder / RECORD_FILE, record)

    @classmethod
    def load(cls, folder: Path | str, device: str = AUTO) -> Self:
        """Load a fitted classifier from a folder written by `save`. No code in it is executed.

        Parameters
        ----------
        device
            Where to predict; it becomes the parameter of the same name.

        Raises
        ------
        StorageError
            If files are missing or damaged, or have another format version.
        """
        folder = Path(folder)
        classifier = ImageClassifier.load(folder, make_device(device))
        try:
            record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
            if record["format_version"] != FORMAT_VERSION:
                raise StorageError(
                    f"{folder} has estimator format {record['format_version']}; this release "
                    f"reads {FORMAT_VERSION}. Use the release that saved it."
                )
            known = inspect.signature(cls).parameters
            given = {k: v for k, v in record["parameters"].items() if k in known}
            estimator = cls(**{**given, "device": device})
            estimator.classes_ = np.array([*record["labels"]], dtype=_dtype(record["dtype"]))
            estimator._names = tuple(record["names"])
            is_whole = len(estimator.classes_) == len(estimator._names)
            if not is_whole or sorted(estimator._names) != sorted(classifier.classes):
                raise ValueError("its labels are not those of the classifier")
            advice = json.loads((folder / ADVICE_FILE).read_text(encoding="utf-8"))
        except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise StorageError(f"{folder} contains no readable estimator: {error!r}") from error
        estimator.classifier_, estimator.advice_ = classifier, read_advice(advice)
        return estimator


def _plain(value: Any) -> Any:
    """Return a value that JSON has, or refuse it."""
    plain = value.item() if isinstance(value, np.generic) else value
    if plain is None or isinstance(plain, str | int | float | bool):
        return plain
    raise StorageError(
        f"{value!r} cannot be saved: labels and parameters must be text, numbers or booleans."
    )


def _dtype(text: str) -> np.dtype[Any]:
    """Return the type of saved labels: booleans, numbers, text, or any of them."""
    found = np.dtype(text)
    if found.kind not in "biufUO":
        raise ValueError(f"labels of type {text}")
    return found
