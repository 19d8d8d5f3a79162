"""Time budget of a run: seconds left to the search after the reserves for what follows it."""

import time
from dataclasses import dataclass

SLACK_S = 1.0
"""Reserve for what is not measured: loading the best classifier, writing the outcome."""
SAFETY_FACTOR = 1.15
"""Evaluation and report take at most this many times as long as measured."""
SOUP_S = 2.0
"""Reserve for reading the soup candidates from disk and writing their average."""
MAX_CONTROL_SHARE = 0.2
"""Fitting and evaluating the control may take this share of a run's time, else there is none."""
MIN_FIT_S = 2.5
"""A training run is not worth starting with less time than this, validation not counted."""
MIN_VALIDATIONS = 2
"""A training run is validated at least at its start and at its end."""


@dataclass
class TimeBudget:
    """The deadline of a run, the reserves before it, and the prediction speed of this machine.

    Its methods are the only ones that change it.

    Attributes
    ----------
    deadline_s
        ``time.monotonic()`` at which the program must have ended.
    n_test, n_val
        Images that are predicted once at the end, and once a trial.
    by_px
        Recent seconds to predict one image, for every input size in use.
    control_s
        Seconds reserved for the control.
    has_control
        Whether the probe that is the incumbent has its control already. A training run that is
        the incumbent needs its own.
    incumbent_is_trained
        Whether the incumbent (best trial so far) is a training run.
    n_soup_images
        Images that must be read to validate averages of the best training runs (`soup`).
    report_s
        Seconds that the draft of the report took.
    """

    deadline_s: float
    n_test: int
    n_val: int
    by_px: dict[int, float]
    control_s: float = 0.0
    report_s: float = 0.0
    has_control: bool = False
    incumbent_is_trained: bool = False
    n_soup_images: int = 0

    @property
    def s_per_image(self) -> float:
        """Seconds to predict one image at the slowest size: the best classifier may have it."""
        return max(self.by_px.values())

    def observe_prediction(self, n: int, seconds: float, px: int) -> None:
        """Update the prediction speed from `n` images; an old slow value halves at each update."""
        self.by_px[px] = max(seconds / n, self.by_px.get(px, 0.0) / 2)

    def expect_size(self, px: int) -> None:
        """Expect a time by area for an input size that was not timed in this process yet."""
        largest = max(self.by_px)
        self.by_px.setdefault(px, self.by_px[largest] * (px / largest) ** 2)

    def observe_report(self, seconds: float) -> None:
        """Reserve what the draft of the report took."""
        self.report_s = seconds

    def reserve_for(self, *, incumbent_is_trained: bool, n_soup_images: int) -> None:
        """Reserve time for the control of the incumbent, and for averaging the training runs."""
        self.incumbent_is_trained, self.n_soup_images = incumbent_is_trained, n_soup_images

    def affords_control(self, time_s: float) -> bool:
        """Return whether the control is cheap enough for a run of `time_s` seconds in all."""
        evaluation_s = SAFETY_FACTOR * self.n_test / 2 * self.s_per_image
        return self.control_s + evaluation_s <= MAX_CONTROL_SHARE * time_s

    def early_control(self, *, is_fitted: bool) -> None:
        """Note whether the probe that is the incumbent has its control already."""
        self.has_control = is_fitted

    def release_control(self, *, is_fitted: bool) -> None:
        """Give the rest of the control's time to the search.

        Without a control, only the classifier is evaluated on test.
        """
        self.control_s = 0.0
        if not is_fitted:
            self.n_test //= 2

    def report_begins_s(self) -> float:
        """Return the ``time.monotonic()`` by which all evaluation must be over."""
        return self.deadline_s - SLACK_S - SAFETY_FACTOR * self.report_s

    def test_begins_s(self) -> float:
        """Return the ``time.monotonic()`` at which evaluation on test must begin."""
        return self.report_begins_s() - SAFETY_FACTOR * self.n_test * self.s_per_image

    def soup_ends_s(self) -> float:
        """Return the ``time.monotonic()`` after which no more averages may be validated."""
        control_is_due = self.incumbent_is_trained or not self.has_control
        return self.test_begins_s() - control_is_due * self.control_s

    def search_ends_s(self) -> float:
        """Return the ``time.monotonic()`` by which the last trial must be over."""
        soup_s = 0.0
        if self.n_soup_images:
            soup_s = SAFETY_FACTOR * self.n_soup_images * self.s_per_image + SOUP_S
        return self.soup_ends_s() - soup_s

    def fit_ends_s(self) -> float:
        """Return the ``time.monotonic()`` by which a fit must end, to be validated in time."""
        return self.search_ends_s() - SAFETY_FACTOR * self.n_val * self.s_per_image - 0.3

    def fold_ends_s(self, n_left: int) -> float:
        """Return the ``time.monotonic()`` by which the next of `n_left` folds must be fitted.

        The folds of a trial share the time that is left equally.
        """
        now = time.monotonic()
        return now + (self.fit_ends_s() - now) / n_left

    def left_s(self) -> float:
        """Return the seconds in which trials can still be run."""
        return self.fit_ends_s() - time.monotonic()

    def min_fit_s(self) -> float:
        """Return the least seconds with which a training run is worth starting."""
        return MIN_FIT_S + MIN_VALIDATIONS * self.n_val * self.s_per_image
