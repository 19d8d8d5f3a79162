"""Scheduler: which strategy gets the next trial, where it starts, and which trial is best.

All decisions are pure functions of the advice, the trials so far and the time left.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from advisor.decide.frontier import best_size, ends_in_time, fallback_within
from advisor.decide.gain_model import prior_of, shrunk_to_prior
from advisor.tune.interventions import (
    BACKBONE,
    alternative_backbone,
    controls_are_candidates,
    initial_trials,
    interventions_for,
)
from advisor.tune.time_budget import TimeLeft
from advisor.tune.trials.study import TrialsSnapshot
from advisor.types.advice import Advice, Recommendation
from advisor.types.options import NOISE, Prefer, tie_tolerance
from advisor.types.outcome import Ended, TrialRecord
from strategies.core.metrics import Interval
from strategies.heads.compute_budget import PASS_SHARE
from strategies.registry import STRATEGIES, baseline, get_strategy

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

PROBE_TRIALS = 10
"""Trials of a strategy that trains no network, if it is the only one that is searched. Otherwise
it gets one: its hyperparameters were chosen by cross-validation, and more trials would overfit
validation."""
MIN_TIME_SHARE = 0.3
"""A training run is started if at least this share of its expected time is left. If none has that,
the shortest one is started: the remaining time may still give a better classifier."""
MIN_GAIN = NOISE["balanced"]
"""A search ends if not even a trial without an error would gain more than this, or more than what
counts as equal if that is larger."""
PERFECT = Interval(1.0, 1.0, 1.0)
MIN_SHARE_OF_IMAGES = 0.5
"""Where time is short, a head keeps the profile's input size if features of this share of the
images can be computed. On thirteen datasets of benchmarks/results.jsonl a linear probe at 96 px
with five times the images was 3.5 points better than at 224 px, and 4.2 points worse with as many
images: a smaller size pays only if it gives about 2.4 times the images."""
MAX_FAILURES = 3
"""A strategy whose first trials all failed gets at most this many."""


@dataclass(frozen=True)
class Scheduler:
    """Allocation of trials to candidate strategies, and comparison of their scores.

    Attributes
    ----------
    candidates
        The recommendations of the strategies that are searched, in the order in which they start.
    n_val
        Number of images that trials are scored on.
    probe_trials
        Maximum number of trials of a strategy that trains no network.
    max_trials
        Maximum over all strategies; None: as many as the time allows.
    interventions
        Changes to the advised hyperparameters that findings call for, by strategy.
    options
        All strategies at all input sizes (`Frontier.options`): where time is short, a training
        run starts with the size that is best within it.
    n_fits
        Fits per trial: the number of folds (`validation`).
    prefer
        What counts as equal between strategies, see `recommend`.
    features_s, unmeasured_s
        Seconds for the features of all images at the profile's input size, and of those that the
        advice did not measure.
    """

    candidates: tuple[Recommendation, ...]
    n_val: int
    probe_trials: int
    max_trials: int | None
    interventions: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    options: tuple[Recommendation, ...] = ()
    n_fits: int = 1
    prefer: Prefer = "balanced"
    features_s: float = 0.0
    unmeasured_s: float = 0.0

    @property
    def one_image(self) -> float:
        """Accuracies that differ by less than this differ by at most one validation image."""
        return 1.5 / self.n_val

    def choose(self, snapshot: TrialsSnapshot, left: TimeLeft) -> str | None:
        """Return the strategy of the next trial, or None if nothing is left to try.

        The baseline comes first, as it is nearly free. Then comes the strategy with the fewest
        trials, where trials of the incumbent's strategy count half. A strategy whose best
        interval lies below the incumbent's interval gets no more trials.
        """
        if left.head_s <= 0 or (self.max_trials and snapshot.n >= self.max_trials):
            return None
        incumbent = self.best(snapshot.done)
        if self.max_trials is None and incumbent is not None and self._is_unbeatable(incumbent):
            return None
        remaining = self._remaining(snapshot, incumbent)
        in_time = self._fit_in_time(remaining, snapshot, left)
        if not in_time:
            return None

        def weighted_trials(c: Recommendation) -> float:
            if get_strategy(c.strategy).role == "baseline":
                return 0.0
            is_best = incumbent is not None and incumbent.strategy == c.strategy
            n = _n_begun(c.strategy, snapshot)
            return n / 2 if is_best else float(n)

        return min(in_time, key=weighted_trials).strategy

    def end_reason(self, snapshot: TrialsSnapshot) -> Ended:
        """Return why a search ended that was not interrupted."""
        incumbent = self.best(snapshot.done)
        if self.max_trials is not None:
            return "trials" if snapshot.n >= self.max_trials else "time"
        if incumbent is not None and self._is_unbeatable(incumbent):
            return "unbeatable"
        return "time" if self._remaining(snapshot, incumbent) else "no_candidate"

    def _remaining(
        self, snapshot: TrialsSnapshot, incumbent: TrialRecord | None
    ) -> list[Recommendation]:
        return [c for c in self.candidates if self._may_still_win(c, snapshot, incumbent)]

    def _is_unbeatable(self, incumbent: TrialRecord) -> bool:
        """Return whether even a trial without a validation error would gain too little."""
        perfect = (
            replace(incumbent, strategy=c.strategy, hyperparameters={}, val_accuracy=PERFECT)
            for c in self.candidates
        )
        return not any(
            self._is_better(record, incumbent, max(self._margin(record, incumbent), MIN_GAIN))
            for record in perfect
        )

    def _may_still_win(
        self, c: Recommendation, snapshot: TrialsSnapshot, incumbent: TrialRecord | None
    ) -> bool:
        own = [r for r in snapshot.done if r.strategy == c.strategy]
        scores = [r.val_accuracy for r in own if r.val_accuracy is not None]
        if len(own) >= MAX_FAILURES and not scores and not any(r.pruned for r in own):
            return False
        if not _is_trained(c.strategy):
            n_interventions = len(self.interventions.get(c.strategy, ()))
            return _n_begun(c.strategy, snapshot) < self.probe_trials + n_interventions
        if incumbent is None or incumbent.val_accuracy is None or not scores:
            return True
        return max(s.high for s in scores) >= incumbent.val_accuracy.low

    def _fit_in_time(
        self, remaining: Sequence[Recommendation], snapshot: TrialsSnapshot, left: TimeLeft
    ) -> list[Recommendation]:
        """Keep what fits into the time left, or the shortest training run if none of them does."""
        sized = [self._within(c, snapshot, left) for c in remaining]
        needed = {c.strategy: self.expected_s(c, snapshot) for c in sized}
        trained = [c for c in remaining if _is_trained(c.strategy)]
        fits = [c for c in trained if needed[c.strategy] * MIN_TIME_SHARE <= left.training_s]
        if not fits and trained and left.training_s > left.min_training_s:
            fits = [min(trained, key=lambda c: needed[c.strategy])]
        heads = [c for c in remaining if not _is_trained(c.strategy)]
        if self._is_partial(snapshot) and not self._measures_enough_in(left.head_s):
            heads = [c for c in heads if needed[c.strategy] <= left.head_s]
        return [c for c in remaining if c in fits or c in heads]

    def _measures_enough_in(self, seconds: float) -> bool:
        """Return whether there is time for the features of enough images at the profile's size."""
        missing_s = self.unmeasured_s - (1 - MIN_SHARE_OF_IMAGES) * self.features_s
        return missing_s <= PASS_SHARE * seconds

    def _is_partial(self, snapshot: TrialsSnapshot) -> bool:
        """Return whether the incumbent was fitted to a part of the images, for lack of time."""
        incumbent = self.best(snapshot.done)
        return incumbent is not None and incumbent.n_train is not None

    def expected_s(self, c: Recommendation, snapshot: TrialsSnapshot) -> float:
        """Return the expected seconds of a trial: the median of earlier ones, or as predicted."""
        own = [r for r in snapshot.done if r.strategy == c.strategy and r.n_train is None]
        took = [r.seconds for r in own if r.reason is None]
        return statistics.median(took) if took else self.n_fits * c.seconds.mid

    def start(
        self,
        strategy: str,
        snapshot: TrialsSnapshot,
        space: Mapping[str, "BaseDistribution"],
        left: TimeLeft,
    ) -> dict[str, Any]:
        """Return the hyperparameters that a strategy's next trial starts with.

        The advice comes first, then the interventions, then neighbours of the advice. After
        these the result is empty, and the sampler draws all hyperparameters. If time is short,
        training runs start on smaller images.
        """
        advised = next(c for c in self.candidates if c.strategy == strategy)
        advised = self._within(advised, snapshot, left)
        interventions = self.interventions.get(strategy, ())
        entries = initial_trials(advised.hyperparameters, space, interventions)
        if _is_trained(strategy):  # the alternative backbone first: it was found clearly better
            entries.sort(key=lambda entry: BACKBONE not in entry)
        n = _n_begun(strategy, snapshot)
        return entries[n] if n < len(entries) else {}

    def baseline_start(self, input_px: int) -> dict[str, Any] | None:
        """Return hyperparameters of the baseline that need only features of the centre crops.

        None if the baseline is not searched.

        Parameters
        ----------
        input_px
            The input size of these features.
        """
        names = (c for c in self.candidates if get_strategy(c.strategy).role == "baseline")
        own = next(names, None)
        return None if own is None else {**own.hyperparameters, "views": 1, "input_px": input_px}

    def _within(
        self, c: Recommendation, snapshot: TrialsSnapshot, left: TimeLeft
    ) -> Recommendation:
        """Return a strategy with the input size that is best within the time left.

        The advised size stays for the first training run if that is likely to end in time: less
        time than the advice was made for changes the best size, but hardly the accuracy. A head
        keeps its size if features of all images have been computed, or enough can be.
        """
        own = [o for o in self.options if o.strategy == c.strategy]
        if not own:
            return c
        if _is_trained(c.strategy):
            time_s = left.training_s / self.n_fits
            is_first = not any(_is_trained(r.strategy) for r in snapshot.done)
            if is_first and ends_in_time(c, time_s):
                return c
        elif self._is_partial(snapshot) and not self._measures_enough_in(left.head_s):
            time_s = left.head_s / self.n_fits
        else:
            return c
        return best_size(own, time_s, fallback_within(self.options, time_s), self.prefer)

    def best(self, records: Sequence[TrialRecord]) -> TrialRecord | None:
        """Return the best of some trials, compared in their order with the best before them."""
        best = None
        for record in records:
            if self.beats(record, best):
                best = record
        return best

    def beats(self, record: TrialRecord, best: TrialRecord | None) -> bool:
        """Return whether a trial is better than the best trial so far.

        A later trial of the same strategy must win by more than one validation image. A costlier
        strategy must be `expected` to be better by more than what counts as equal; a cheaper one
        may be worse by that much. A trial on all images beats one on a part of them, which was
        scored on fewer.
        """
        if record.val_accuracy is None:
            return False
        if best is None or best.val_accuracy is None:
            return True
        if (best.n_train is None) != (record.n_train is None):
            return best.n_train is not None
        return self._is_better(record, best, self._margin(record, best))

    def _margin(self, record: TrialRecord, best: TrialRecord) -> float:
        """Return by how much the accuracies of two trials may differ and still count as equal."""
        return tie_tolerance(max(map(self.expected, (record, best))), self.prefer)

    def _is_better(self, record: TrialRecord, best: TrialRecord, margin: float) -> bool:
        """Return whether a trial beats another if differences up to `margin` count as equal."""
        if record.strategy == best.strategy:
            assert record.val_accuracy is not None
            assert best.val_accuracy is not None
            return record.val_accuracy.mid - best.val_accuracy.mid > self.one_image
        gap = self.expected(record) - self.expected(best)
        order = list(STRATEGIES)
        cheaper = order.index(record.strategy) < order.index(best.strategy)
        return gap >= -margin if cheaper else gap > margin

    def expected(self, record: TrialRecord) -> float:
        """Return the accuracy that a scored trial is expected to have on new images.

        This is the validation accuracy, shrunk to the advice's prediction for the strategy (the
        prior). With few validation images the prior weighs more, with many the validation
        accuracy does. For an alternative backbone the advice has no prior, and the validation
        accuracy is returned.
        """
        assert record.val_accuracy is not None
        alike = [c for c in (*self.options, *self.candidates) if c.strategy == record.strategy]
        px = record.hyperparameters.get("input_px")
        advised = next((c for c in alike if c.input_px == px), alike[-1] if alike else None)
        if advised is None or BACKBONE in record.hyperparameters:
            return record.val_accuracy.mid
        prior = prior_of(advised.accuracy)
        return shrunk_to_prior(record.val_accuracy.mid, self.n_val, prior).accuracy().mid


def make_scheduler(
    advice: Advice,
    n_val: int,
    *,
    only: str | None,
    max_trials: int | None,
    prefer: Prefer,
) -> Scheduler:
    """Return a scheduler of the baseline, the advised strategy and those that may beat it.

    The baseline is nearly free and gives a classifier within minutes. Strategies that may beat
    the advised one are the runner-up and every training strategy whose interval reaches the
    advised accuracy. Strategies without benchmark cases are searched only if they are advised or
    asked for. If none may win, the best training strategy is a candidate all the same: a
    prediction may be wrong, and probes need little time. After an issue of negative transfer,
    controls that are trained are candidates too. If an alternative backbone is clearly better,
    probes try it in their second trial and training strategies in their first.

    Parameters
    ----------
    only
        Search this strategy alone; None: the candidates described above.
    prefer
        What counts as equal between strategies, see `recommend`.
    """
    options = () if advice.frontier is None else advice.frontier.options
    recommended = _for_search(advice)
    by_name = {r.strategy: r for r in recommended}
    changes = interventions_for(advice.findings)
    other = alternative_backbone(advice)
    if other is not None:
        changes = {n: [other, *changes.get(n, [])] for n in by_name if not _is_control(n)}
    profile = advice.profile
    search = Scheduler(
        (),
        n_val,
        1,
        max_trials,
        changes,
        options,
        prefer=prefer,
        features_s=profile.n * profile.ms_per_image / 1000,
        unmeasured_s=(profile.n - profile.n_measured) * profile.ms_per_image / 1000,
    )
    if only is not None:
        single = (by_name[only],)
        return replace(search, candidates=single, probe_trials=PROBE_TRIALS)
    best, *others = (r for i, r in enumerate(recommended) if i == 0 or r.cases)
    may_win = [r for r in others if r.accuracy.high >= best.accuracy.mid]
    ranked = sorted([best, *others], key=lambda r: -r.accuracy.mid)
    training_runs = [r for r in ranked if _is_trained(r.strategy) and not _is_control(r.strategy)]
    trained = [r for r in training_runs if r in may_win or r == best] or training_runs[:1]
    names = [baseline().name, *(r.strategy for r in [best, *may_win[:1], *trained])]
    if controls_are_candidates(advice.findings):
        # Controls on features learnt without labels lost to these on the benchmarks.
        controls = (r.strategy for r in others if _is_control(r.strategy))
        names += filter(_is_trained, controls)
    candidates = tuple(by_name[n] for n in dict.fromkeys(names) if n in by_name)
    return replace(search, candidates=candidates)


def _for_search(advice: Advice) -> list[Recommendation]:
    """Return the recommendations, as they are for a search that had a time limit.

    A head has the profile's input size: its features have been computed already, or
    `Scheduler.start` takes a smaller size. Strategies that the advice left out for lack of time
    come last: their training runs can be cut to the time that the others leave.
    """
    if advice.time_s is None or advice.frontier is None:
        return list(advice.recommendations)
    px = advice.profile.input_px
    full_size = {o.strategy: o for o in advice.frontier.options if o.input_px == px}
    found = [
        r if _is_trained(r.strategy) else full_size.get(r.strategy, r)
        for r in advice.recommendations
    ]
    names = {r.strategy for r in found}
    return [*found, *(o for name, o in full_size.items() if name not in names)]


def _is_trained(strategy: str) -> bool:
    return get_strategy(strategy).trains_network


def _is_control(strategy: str) -> bool:
    return get_strategy(strategy).role == "control"


def _n_begun(strategy: str, snapshot: TrialsSnapshot) -> int:
    done = sum(r.strategy == strategy and r.n_train is None for r in snapshot.done)
    return done + snapshot.unfinished.count(strategy)
