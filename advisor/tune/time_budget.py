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
MAX_TEST_SHARE = 0.1
"""Evaluating one classifier on test may take this share of a run's time. If all test images would
take longer, it is evaluated on a random sample of them."""
MAX_EXPLAIN_S = 10.0
"""Explaining takes no longer, nor than its reserve, where a run ends before its time."""
RELIABILITY_SHARE, MAX_RELIABILITY_S = 0.04, 60.0
"""Calibrating the best classifier on held-out images may take this share of a run's time, and at
most so many seconds."""
MIN_FIT_S = 2.5
"""A training run is not worth starting with less time than this, validation not counted."""
MIN_VALIDATIONS = 2
"""A training run is validated at least at its start and at its end."""


@dataclass(frozen=True)
class TimeLeft:
    """Seconds left to the next trial.

    Attributes
    ----------
    head_s
        For a head: it is validated on features, which are computed like those it is fitted to.
    training_s
        For a training run, with the time to validate it reserved.
    min_training_s
        A training run is not worth starting with less.
    """

    head_s: float
    training_s: float
    min_training_s: float = 0.0


@dataclass
class TimeBudget:
    """The deadline of a run, the reserves before it, and the prediction speed of this machine.

    Attributes
    ----------
    deadline_s
        ``time.monotonic()`` at which the program must have ended.
    limit_s
        Seconds of the whole run.
    n_test, n_val
        Images that are predicted once at the end, by every classifier, and once a trial.
    by_px
        Recent seconds to predict one image, for every input size in use.
    n_judged
        Classifiers that are evaluated on test: the best one, and perhaps its control.
    control_s
        Seconds reserved for fitting the control.
    has_control
        Whether the probe that is the incumbent has its control already. A training run that is
        the incumbent needs its own.
    incumbent_is_trained
        Whether the incumbent (best trial so far) is a training run.
    n_soup_images
        Images that must be read to validate averages of the best training runs (`soup`).
    sizes
        Input sizes that classifiers may have which must be evaluated: that of the incumbent, and
        that of the trial that is fitted. Empty: all in use.
    report_s
        Seconds that the draft of the report took.
    explain_s
        Seconds reserved for explaining the mistakes on test (activation maps, similar images).
    reliability_s
        Seconds reserved for calibrating the best classifier on held-out images.
    """

    deadline_s: float
    limit_s: float
    n_test: int
    n_val: int
    by_px: dict[int, float]
    n_judged: int = 1
    control_s: float = 0.0
    report_s: float = 0.0
    explain_s: float = 0.0
    has_control: bool = False
    incumbent_is_trained: bool = False
    n_soup_images: int = 0
    sizes: frozenset[int] = frozenset()
    reliability_s: float = 0.0

    @property
    def s_per_image(self) -> float:
        """Seconds to predict one image at the slowest size that must be reserved for."""
        return max(map(self.seconds_at, self.sizes or self.by_px))

    def seconds_at(self, px: int) -> float:
        """Return the seconds to predict one image, by area for a size that was not timed yet."""
        largest = max(self.by_px)
        return self.by_px.get(px, self.by_px[largest] * (px / largest) ** 2)

    def observe_prediction(self, n: int, seconds: float, px: int) -> None:
        """Update the prediction speed from `n` images; an old slow value halves at each update."""
        self.by_px[px] = max(seconds / n, self.by_px.get(px, 0.0) / 2)

    def expect_size(self, px: int) -> None:
        """Expect a time by area for an input size that was not timed in this process yet."""
        self.by_px.setdefault(px, self.seconds_at(px))

    def reserve_for(
        self, *, incumbent_is_trained: bool, n_soup_images: int, incumbent_px: int | None = None
    ) -> None:
        """Reserve time for evaluating the incumbent, its control, and averages of training runs.

        Parameters
        ----------
        incumbent_px
            Its input size; None: there is no incumbent.
        """
        self.incumbent_is_trained, self.n_soup_images = incumbent_is_trained, n_soup_images
        self.sizes = frozenset() if incumbent_px is None else frozenset({incumbent_px})

    def begin_fit(self, px: int) -> None:
        """Reserve time for evaluating a fit at some input size as well: it may become the best."""
        if self.sizes:
            self.sizes |= {px}

    def affords_control(self) -> bool:
        """Return whether the control is cheap enough for this run."""
        evaluation_s = SAFETY_FACTOR * self.n_test * self.s_per_image
        return self.control_s + evaluation_s <= MAX_CONTROL_SHARE * self.limit_s

    def release_control(self, *, is_fitted: bool) -> None:
        """Give the rest of the control's time to the search.

        Without a control, only the classifier is evaluated on test.
        """
        self.control_s = 0.0
        if not is_fitted:
            self.n_judged = 1

    def report_begins_s(self) -> float:
        """Return the ``time.monotonic()`` by which all evaluation and explanation must be over."""
        return self.deadline_s - SLACK_S - SAFETY_FACTOR * self.report_s

    def explanation_begins_s(self) -> float:
        """Return the ``time.monotonic()`` by which all evaluation must be over."""
        return self.report_begins_s() - self.explain_s

    def explanation_ends_s(self) -> float:
        """Return the ``time.monotonic()`` by which an explanation that begins now must end.

        A run that ends before its time explains for at most `MAX_EXPLAIN_S`.
        """
        most_s = max(self.explain_s, MAX_EXPLAIN_S)
        return min(self.report_begins_s(), time.monotonic() + most_s)

    def test_begins_s(self) -> float:
        """Return the ``time.monotonic()`` at which evaluation on test must begin."""
        test_s = SAFETY_FACTOR * self.n_test * self.s_per_image
        return self.explanation_begins_s() - self.n_judged * min(
            test_s, MAX_TEST_SHARE * self.limit_s
        )

    def control_ends_s(self) -> float:
        """Return the ``time.monotonic()`` by which the control must be fitted."""
        return self.test_begins_s() - self.reliability_s

    def soup_ends_s(self) -> float:
        """Return the ``time.monotonic()`` after which no more averages may be validated."""
        control_is_due = self.incumbent_is_trained or not self.has_control
        return self.control_ends_s() - control_is_due * self.control_s

    def search_ends_s(self) -> float:
        """Return the ``time.monotonic()`` by which the last trial must be over."""
        soup_s = 0.0
        if self.n_soup_images:
            soup_s = SAFETY_FACTOR * self.n_soup_images * self.s_per_image + SOUP_S
        return self.soup_ends_s() - soup_s

    def fit_ends_s(self, n_val: int | None = None) -> float:
        """Return the ``time.monotonic()`` by which a fit must end, to be validated in time.

        Parameters
        ----------
        n_val
            Validation images that must pass the network; None: all of them.
        """
        n = self.n_val if n_val is None else n_val
        return self.search_ends_s() - SAFETY_FACTOR * n * self.s_per_image - 0.3

    def fold_ends_s(self, n_left: int, n_val: int | None = None) -> float:
        """Return the ``time.monotonic()`` by which the next of `n_left` folds must be fitted.

        The folds of a trial share the time that is left equally.
        """
        now = time.monotonic()
        return now + (self.fit_ends_s(n_val) - now) / n_left

    def left_s(self, n_val: int | None = None) -> float:
        """Return the seconds in which a trial can still be fitted."""
        return self.fit_ends_s(n_val) - time.monotonic()

    def min_fit_s(self) -> float:
        """Return the least seconds with which a training run is worth starting."""
        return MIN_FIT_S + MIN_VALIDATIONS * self.n_val * self.s_per_image


def reliability_reserve_s(limit_s: float) -> float:
    """Return the seconds to reserve in a run of `limit_s` for calibrating its classifier."""
    return min(RELIABILITY_SHARE * limit_s, MAX_RELIABILITY_S)
