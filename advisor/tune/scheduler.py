"""Which strategy gets the next trial, where it starts, and which trial is best. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from advisor.decide.gain_model import prior_of, shrunk_to_prior
from advisor.tune.interventions import (
    BACKBONE,
    initial_trials,
    interventions_for,
    other_backbone,
    scratch_contends,
)
from advisor.tune.study import TrialsSnapshot
from advisor.types.advice import Advice, Recommendation
from advisor.types.options import NOISE, Prefer, equal_within
from advisor.types.outcome import Ended, TrialRecord
from strategies.core.metrics import Interval
from strategies.registry import STRATEGIES, get_strategy

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

BASELINE, CONTROL = "linear_probe", "from_scratch"
"""The one is always tried first: nearly free, and a valid classifier after the first minutes. The
other is what transfer must beat, not a contender."""
PROBE_TRIALS = 10
"""Trials of a strategy that trains no network, where it is the only one that is searched. Else it
gets one: its hyperparameters were chosen by cross-validation, and more would only fit val."""
WORTH_STARTING = 0.3
"""A training is started if at least this share of its expected time is left. With less, the one
that needs least of it is: time that is left over may still win."""
SHARE_OF_TIME = 0.5
"""Far from the pretraining images a training has much to learn: if it is not expected to be over
in this share of the time that is left, it does better with smaller images than with fewer steps
(benchmarks/README-training.md). Near them it is the other way round."""
WORTH_SEARCHING = NOISE["balanced"]
"""A search is over where not even a trial without an error would be better by more than this, or
by more than counts as equal if that is more."""
PERFECT = Interval(1.0, 1.0, 1.0)
MAX_FAILURES = 3
"""A strategy whose first trials all failed gets no more than this many."""


@dataclass(frozen=True)
class Scheduler:
    """The strategies in the race, in the order in which they start.

    Attributes
    ----------
    contenders
        What the advice says of them.
    n_val
        Images that trials are judged on.
    probe_trials
        At most this many trials of a strategy that trains no network.
    max_trials
        Over all strategies; None: as many as the time allows.
    n_fits
        How often a training of a trial is fitted (`validation`).
    remedies
        Changes to the advised hyperparameters that findings call for, by strategy.
    sizes
        Sides of the input that a training may start with where time is short, largest first;
        empty: the advised one whatever the time.
    prefer
        What counts as equal between strategies, see `recommend`.
    """

    candidates: tuple[Recommendation, ...]
    n_val: int
    probe_trials: int
    max_trials: int | None
    interventions: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    sizes: Sequence[int] = ()
    n_fits: int = 1
    prefer: Prefer = "balanced"

    @property
    def one_image(self) -> float:
        """Accuracies that differ by less than this differ by one judged image at most."""
        return 1.5 / self.n_val

    def choose(
        self, snapshot: TrialsSnapshot, seconds_left: float, shortest_s: float = 0.0
    ) -> str | None:
        """Name the strategy of the next trial, or None if nothing is left to try.

        The floor first, as it is nearly free; then the one with the fewest trials, where those of
        the strategy that leads count half. Out of the race is what the leader's interval lies
        above.

        Parameters
        ----------
        shortest_s
            A training is not worth starting with less time than this.
        """
        if seconds_left <= 0 or (self.max_trials and snapshot.n >= self.max_trials):
            return None
        leader = self.best(snapshot.done)
        if self.max_trials is None and leader is not None and self._is_unbeatable(leader):
            return None
        able = self._in_time(self._open(snapshot, leader), snapshot, seconds_left, shortest_s)
        if not able:
            return None

        def load(c: Recommendation) -> float:
            if c.strategy == BASELINE:
                return 0.0
            leads = leader is not None and leader.strategy == c.strategy
            n = _n_begun(c.strategy, snapshot)
            return n / 2 if leads else float(n)

        return min(able, key=load).strategy

    def ended(self, snapshot: TrialsSnapshot) -> Ended:
        """Say why a search is over that was not interrupted."""
        leader = self.best(snapshot.done)
        if self.max_trials is not None:
            return "trials" if snapshot.n >= self.max_trials else "time"
        if leader is not None and self._is_unbeatable(leader):
            return "unbeatable"
        return "time" if self._open(snapshot, leader) else "no_contender"

    def _open(self, snapshot: TrialsSnapshot, leader: TrialRecord | None) -> list[Recommendation]:
        return [c for c in self.candidates if self._is_open(c, snapshot, leader)]

    def _is_unbeatable(self, leader: TrialRecord) -> bool:
        """Whether not even a trial without an error on validation would be better by what is worth it."""
        perfect = (
            replace(leader, strategy=c.strategy, hyperparameters={}, val_accuracy=PERFECT)
            for c in self.candidates
        )
        return not any(
            self._wins(record, leader, max(self._margin(record, leader), WORTH_SEARCHING))
            for record in perfect
        )

    def _is_open(
        self, c: Recommendation, snapshot: TrialsSnapshot, leader: TrialRecord | None
    ) -> bool:
        own = [r for r in snapshot.done if r.strategy == c.strategy]
        scores = [r.val_accuracy for r in own if r.val_accuracy is not None]
        if not _is_trained(c.strategy):
            called_for = len(self.interventions.get(c.strategy, ()))
            return _n_begun(c.strategy, snapshot) < self.probe_trials + called_for
        if len(own) >= MAX_FAILURES and not scores and not any(r.pruned for r in own):
            return False
        if leader is None or leader.val_accuracy is None or not scores:
            return True
        return max(s.high for s in scores) >= leader.val_accuracy.low

    def _in_time(
        self,
        able: Sequence[Recommendation],
        snapshot: TrialsSnapshot,
        seconds_left: float,
        shortest_s: float,
    ) -> list[Recommendation]:
        """Keep what fits into the time, or, if no training does, the shortest of them."""
        trained = [c for c in able if _is_trained(c.strategy)]
        needed = {c.strategy: self.expected_s(c, snapshot) for c in trained}
        fits = [c for c in trained if needed[c.strategy] * WORTH_STARTING <= seconds_left]
        if not fits and trained and seconds_left > shortest_s:
            fits = [min(trained, key=lambda c: needed[c.strategy])]
        return [c for c in able if not _is_trained(c.strategy) or c in fits]

    def expected_s(self, c: Recommendation, snapshot: TrialsSnapshot) -> float:
        """Return how long a trial of a strategy takes: as the others did, or as was predicted."""
        took = [r.seconds for r in snapshot.done if r.strategy == c.strategy and r.reason is None]
        return statistics.median(took) if took else self.n_fits * c.seconds.mid

    def start(
        self,
        strategy: str,
        snapshot: TrialsSnapshot,
        space: Mapping[str, "BaseDistribution"],
        seconds_left: float,
    ) -> dict[str, Any]:
        """Return the hyperparameters that a strategy's next trial starts with.

        The advice first, then remedies, then its neighbours; after them none: the sampler draws.
        Where time is short they start on smaller images (see `SHARE_OF_TIME`).
        """
        advised = next(c for c in self.candidates if c.strategy == strategy)
        called_for = self.interventions.get(strategy, ())
        entries = initial_trials(advised.hyperparameters, space, called_for)
        if _is_trained(strategy):  # a backbone that is clearly better needs no second look
            entries.sort(key=lambda entry: BACKBONE not in entry)
        n = _n_begun(strategy, snapshot)
        return self._sized(advised, entries[n], seconds_left) if n < len(entries) else {}

    def _sized(
        self, advised: Recommendation, entry: dict[str, Any], seconds_left: float
    ) -> dict[str, Any]:
        """Give an entry the largest input with which its training is over in time."""
        if not self.sizes or not _is_trained(advised.strategy):
            return entry
        whole = self.n_fits * advised.seconds.mid / self.sizes[0] ** 2
        fits = [px for px in self.sizes if whole * px**2 <= SHARE_OF_TIME * seconds_left]
        return {**entry, "input_px": max(fits, default=min(self.sizes))}

    def best(self, records: Sequence[TrialRecord]) -> TrialRecord | None:
        """Return the best of some trials, taken in their order."""
        best = None
        for record in records:
            if self.beats(record, best):
                best = record
        return best

    def beats(self, record: TrialRecord, best: TrialRecord | None) -> bool:
        """Whether a trial is better than the best so far.

        The same strategy with other hyperparameters than came first must win by more than one validation
        image. A dearer strategy must be `expected` to be better by more than counts as equal; a
        cheaper one may be worse by that.
        """
        if record.val_accuracy is None:
            return False
        if best is None or best.val_accuracy is None:
            return True
        return self._wins(record, best, self._margin(record, best))

    def _margin(self, record: TrialRecord, best: TrialRecord) -> float:
        """Return by how much two judged trials may differ and still count as equal."""
        return equal_within(max(map(self.expected, (record, best))), self.prefer)

    def _wins(self, record: TrialRecord, best: TrialRecord, margin: float) -> bool:
        """Whether a judged trial is better than another where so much counts as equal."""
        if record.strategy == best.strategy:
            assert record.val_accuracy is not None
            assert best.val_accuracy is not None
            return record.val_accuracy.mid - best.val_accuracy.mid > self.one_image
        gap = self.expected(record) - self.expected(best)
        order = list(STRATEGIES)
        cheaper = order.index(record.strategy) < order.index(best.strategy)
        return gap >= -margin if cheaper else gap > margin

    def expected(self, record: TrialRecord) -> float:
        """Return the accuracy that a judged trial is expected to have on new images.

        What validation says of it, drawn to what the advice expects of its strategy: a few validation images
        say less than the evidence that the advice rests on, many of them say more. On another
        backbone than that of the advice validation alone speaks.
        """
        assert record.val_accuracy is not None
        advised = next((c for c in self.candidates if c.strategy == record.strategy), None)
        if advised is None or BACKBONE in record.hyperparameters:
            return record.val_accuracy.mid
        prior = prior_of(advised.accuracy)
        return shrunk_to_prior(record.val_accuracy.mid, self.n_val, prior).accuracy.mid


def make_scheduler(
    advice: Advice,
    n_val: int,
    *,
    only: str | None,
    max_trials: int | None,
    prefer: Prefer,
    sizes: Sequence[int] = (),
) -> Scheduler:
    """Line up the floor, the advised strategy, and what may beat it.

    That is its runner-up and every training whose interval reaches the advised accuracy; if none
    does, the best of them all the same: a prediction may be wrong, and probes use up no time.
    Where negative transfer is warned of, training from scratch too; where another backbone does
    clearly better, probes try it second and training runs first.

    Parameters
    ----------
    prefer
        What counts as equal between strategies, see `recommend`.
    sizes
        Sides of the input that the backbone takes, its own first.
    """
    sizes = () if advice.quadrant.domain == "similar" else sizes
    by_name = {r.strategy: r for r in advice.recommendations}
    called_for = interventions_for(advice.findings)
    other = other_backbone(advice)
    if other is not None:
        called_for = {
            name: [other, *called_for.get(name, [])] for name in by_name if name != CONTROL
        }
    if only is not None:
        alone = (by_name[only],)
        return Scheduler(alone, n_val, PROBE_TRIALS, max_trials, called_for, sizes, prefer=prefer)
    best, *others = advice.recommendations
    may_win = [r for r in others if r.accuracy.high >= best.accuracy.mid]
    ranked = sorted(advice.recommendations, key=lambda r: -r.accuracy.mid)
    training_runs = [r for r in ranked if _is_trained(r.strategy) and r.strategy != CONTROL]
    trained = [r for r in training_runs if r in may_win or r == best] or training_runs[:1]
    names = [BASELINE, *(r.strategy for r in [best, *may_win[:1], *trained])]
    names += [CONTROL] if scratch_contends(advice.findings) else []
    kept = tuple(by_name[n] for n in dict.fromkeys(names) if n in by_name)
    return Scheduler(kept, n_val, 1, max_trials, called_for, sizes, prefer=prefer)


def _is_trained(strategy: str) -> bool:
    return get_strategy(strategy).selects_on_val


def _n_begun(strategy: str, snapshot: TrialsSnapshot) -> int:
    done = sum(r.strategy == strategy for r in snapshot.done)
    return done + snapshot.under_way.count(strategy)
