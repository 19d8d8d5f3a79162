"""Actor of trials: the process, on any node of a Ray cluster, that fits and scores them."""

import contextlib
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue

import torch

from advisor.tune.run_dir.directory import RunDir
from advisor.tune.time_budget import TimeBudget
from advisor.tune.trials.executor import LocalExecutor
from advisor.tune.trials.job import Job, Score, TrialResult
from advisor.types.outcome import TrialRecord
from strategies.core.activation_store import ActivationStore
from strategies.core.allocator import keep_freed_memory
from strategies.core.cache import ArrayCache
from strategies.core.devices import choose_precision
from strategies.core.errors import OutOfTime
from strategies.core.progress import Reporter
from strategies.data.dataset import Split
from strategies.models.classifier import ImageClassifier
from strategies.models.features import CachedRows, cached_rows, extract_features

Message = Score | str
"""What a trial sends to the driver: a score, or a note for the user."""


class TrialActor:
    """Process on any node that fits and scores one trial after the other, by `LocalExecutor`.

    Parameters
    ----------
    n_cpus
        Its processor cores.
    """

    def __init__(self, n_cpus: int) -> None:
        keep_freed_memory()
        torch.set_num_threads(n_cpus)
        self._n_cpus = n_cpus
        self._outbox: SimpleQueue[Message] = SimpleQueue()
        self._activation_store = ActivationStore()
        self._stopped: int | None = None

    def features(
        self,
        local: LocalExecutor,
        budget: TimeBudget,
        ends_at: float,
        images: Split,
        known: Sequence[CachedRows],
    ) -> CachedRows:
        """Compute features, until the time is up, into this node's cache; return their rows.

        Parameters
        ----------
        images
            May be empty.
        known
            Rows that were computed elsewhere, for this node's cache.
        """
        here = self._here(local, budget, ends_at)
        ctx = here.ctx.with_deadline(here.budget.search_ends_s())
        for space, rows in known:
            ctx.cache.put_bytes(space, rows)
        if images:
            with contextlib.suppress(OutOfTime):  # what was computed is in the cache
                extract_features(images, here.backbone, ctx)
        return cached_rows(images, here.backbone, ctx)

    def host(self) -> str:
        """Return the name of this machine, whose processes share a cache."""
        return socket.gethostname()

    def run(
        self, local: LocalExecutor, budget: TimeBudget, ends_at: float, job: Job
    ) -> tuple[TrialResult, list[Message]]:
        """Run a trial; return its result, without the classifier, and what is left to send.

        Parameters
        ----------
        local
            The driver's executor. Its folder is the one that all nodes see.
        budget
            The driver's time budget now.
        ends_at
            Its deadline as ``time.time()``: the clocks of all nodes are assumed to agree.
        """
        here = self._here(local, budget, ends_at)
        result = here.run(job, self._on_score)
        saved = result.saved
        if result.classifier is not None and saved is None:
            saved = _save(result.classifier, here.folder, f"trial-{job.number}")
        return TrialResult(result.record, saved=saved), self.take()

    def refit(
        self, local: LocalExecutor, budget: TimeBudget, ends_at: float, record: TrialRecord
    ) -> Path | None:
        """Fit a scored trial again on train and validation together; return where it is saved."""
        here = self._here(local, budget, ends_at)
        found = here.refit(record)
        return None if found is None else _save(found, here.folder, f"refitted-{record.number}")

    def take(self) -> list[Message]:
        """Return what was not sent yet."""
        messages = []
        with contextlib.suppress(Empty):
            while True:
                messages.append(self._outbox.get_nowait())
        return messages

    def stop(self, number: int) -> None:
        """Stop a trial at its next score: it is to be pruned."""
        self._stopped = number

    def _here(self, local: LocalExecutor, budget: TimeBudget, ends_at: float) -> LocalExecutor:
        """Return the driver's executor for this process."""
        ctx = replace(
            local.ctx,
            cache=ArrayCache(local.ctx.cache.path.parent, local.ctx.cache.max_bytes),
            n_workers=max(2, self._n_cpus),
            reporter=Reporter(on_note=self._outbox.put),
        )
        if torch.cuda.is_available():  # Ray hides the GPUs of other trials
            device, precision = torch.device("cuda"), ctx.precision
            if ctx.device.type != "cuda":
                precision = choose_precision(device)
            ctx = replace(ctx, device=device, precision=precision)
        budget = replace(budget, deadline_s=ends_at - time.time() + time.monotonic())
        return replace(local, ctx=ctx, budget=budget, activation_store=self._activation_store)

    def _on_score(self, job: Job, score: Score) -> bool:
        self._outbox.put(score)
        return self._stopped == job.number


def _save(classifier: ImageClassifier, there: RunDir, name: str) -> Path:
    folder = there.path / "classifiers" / name
    classifier.save(folder)
    return folder
