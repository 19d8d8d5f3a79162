"""Executor on Ray: one trial per GPU of this machine or of a cluster.

A trial runs in an actor, which Ray starts again on another node if its node dies. The trial then
continues from its last checkpoint, in a folder that all nodes see. The driver asks the actors for
the scores of their trials, and tells those that are to be pruned to stop.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import math
import os
import shutil
import socket
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from advisor.tune.interrupt import Interrupt
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.soup_candidates import SoupCandidates
from advisor.tune.time_budget import TimeBudget
from advisor.tune.trials.executor import LocalExecutor
from advisor.tune.trials.job import Executor, Job, OnScore, TrialResult
from advisor.tune.trials.trial_actor import Message, TrialActor
from advisor.types.options import AUTO, Options, RunOptions
from advisor.types.outcome import TrialRecord
from strategies.core.activation_store import ActivationStore
from strategies.core.context import TrainingResources
from strategies.core.devices import make_device
from strategies.core.errors import TransferError
from strategies.core.prefetch import chunks
from strategies.core.progress import Reporter
from strategies.data.dataset import Split
from strategies.models.classifier import ImageClassifier
from strategies.models.features import INFERENCE_BATCH, cached_rows, not_cached
from strategies.registry import get_strategy

SHARD = 2048
"""Images whose features are one task. A GPU takes seconds for them; their rows take some 30 MB."""
MAX_RESTARTS = 3
"""A process that died more often than this is given up with its trial: that may be the cause."""
POLL_S = 0.2
"""Seconds between two looks at the running trials."""
GRACE_S = 2.0
"""A trial may take this many seconds longer than the search, before it is stopped."""
OBJECT_STORE_BYTES = 200 * 2**20
"""Size of the object store of a Ray that is started here. It holds the list of images."""


@dataclass
class _Running:
    """A trial that was submitted: its actor, and Ray's references to what the actor returns."""

    job: Job
    on_score: OnScore
    actor: Any
    result: Any
    messages: Any
    ends_s: float
    is_alive: bool = True
    begun_s: float = field(default_factory=time.monotonic)
    future: Future[TrialResult] = field(default_factory=Future)


class RayExecutor(Executor):
    """Carries out trials on Ray: one per GPU, or one per node where there are none.

    Processes are used again for later trials.

    Parameters
    ----------
    local
        Executor of the driver's process.
    storage
        Folder that the driver and all nodes see, for checkpoints and classifiers.
    ray
        The module, connected to a cluster.
    run
        Most GPUs at a time, and GPUs of a trial.

    Raises
    ------
    TransferError
        If a trial needs more GPUs than any node has.
    """

    def __init__(
        self, local: LocalExecutor, storage: RunDir, ray: ModuleType, run: RunOptions
    ) -> None:
        self._driver, self._storage, self._ray, self._run = local, storage, ray, run
        self._running: dict[int, _Running] = {}
        self._idle: list[Any] = []
        pool = local.soup_candidates
        sent = replace(
            local,
            ctx=replace(
                local.ctx,
                reporter=Reporter(),
                training=TrainingResources(n_gpus=run.gpus_per_trial),
            ),
            folder=storage,
            interrupt=Interrupt(),
            soup_candidates=None if pool is None else SoupCandidates(storage, pool.n_folds),
            activation_store=ActivationStore(),
        )
        self._sent = ray.put(sent)  # once per node, not once per trial
        if not self._shares(run.gpus_per_trial):
            raise TransferError(
                f"--gpus-per-trial {run.gpus_per_trial}: no node of the cluster has as many."
            )

    @property
    def capacity(self) -> int:
        """Number of GPUs, or of nodes if there is none; nodes may join and die."""
        each, most = self._run.gpus_per_trial, self._run.gpus
        n = sum(n_trials for n_trials, _ in self._shares(each))
        return n if most is None else min(n, most // each)

    def compute_features(self, shard: int = SHARD) -> None:
        """Compute the features that are not in the cache on all GPUs, a shard at a time.

        Their rows are put into the driver's cache, and into those of all other machines.

        Parameters
        ----------
        shard
            Number of images.
        """
        local = self._driver
        missing = not_cached(local.dataset.fit_split, local.backbone, local.ctx)
        if len(missing) <= shard:
            return
        n = sum(n for n, _ in self._shares(1))
        actors = [self._new_actor(1) for _ in range(min(n, self._run.gpus or n))]
        try:
            self._compute_shards(missing, actors, shard)
            if self._run.gpus_per_trial == 1:  # trials need such processes
                self._idle, actors = actors, []
        except self._ray.exceptions.RayError as error:
            local.ctx.reporter.on_note(f"The trials compute the features: {_first_line(error)}")
        for actor in actors:
            self._ray.kill(actor)

    def _compute_shards(self, images: Split, actors: Sequence[Any], shard: int) -> None:
        local, ray = self._driver, self._ray
        # From these and what the driver knows of the network, all choose the same precision.
        first, network = images[:INFERENCE_BATCH], cached_rows((), local.backbone, local.ctx)
        known, shards = ray.put([network]), deque(chunks(images, shard))
        hosts: dict[Any, str] = {}
        tasks = {actor.host.remote(): actor for actor in actors}
        ends_s, done = local.budget.search_ends_s() + GRACE_S, 0
        while tasks and not local.interrupt.requested and time.monotonic() < ends_s:
            for task in ray.wait(list(tasks), timeout=POLL_S)[0]:
                actor, found = tasks.pop(task), ray.get(task)
                if isinstance(found, str):
                    hosts[actor] = found
                else:
                    local.ctx.cache.put_bytes(*found)
                    done = min(done + shard, len(images))
                    local.ctx.reporter.on_progress("features", done, len(images))
                    here = (socket.gethostname(), hosts[actor])
                    other_hosts = {h: other for other, h in hosts.items() if h not in here}
                    for other in other_hosts.values():
                        other.features.remote(*self._given(), (), ray.put([found]))
                if shards:
                    given = (*self._given(), (*first, *shards.popleft()), known)
                    tasks[actor.features.remote(*given)] = actor

    def submit(self, job: Job, on_score: OnScore) -> Future[TrialResult]:
        """Send a trial to Ray, which starts it when a node is free."""
        actor = self._idle.pop() if self._idle else self._new_actor(self._run.gpus_per_trial)
        result, messages = actor.run.remote(*self._given(), job), actor.take.remote()
        ends_s = self._driver.budget.search_ends_s()
        running = _Running(job, on_score, actor, result, messages, ends_s)
        self._running[job.number] = running
        return running.future

    def wait(self, futures: Collection[Future[TrialResult]]) -> list[Future[TrialResult]]:
        """Wait until a trial has ended; pass on scores meanwhile; return those that have ended."""
        while True:
            for running in self._running.values():
                if not running.future.done():
                    self._look_at(running)
            if done := [future for future in futures if future.done()]:
                return done
            time.sleep(POLL_S)

    def refit(self, record: TrialRecord) -> ImageClassifier | None:
        """Fit a scored trial again, where it was fitted before. None if that fails in any way."""
        left_s = self._driver.budget.left_s()
        if get_strategy(record.strategy).trains_network or left_s <= 0:
            return None
        running = self._running[record.number]
        refitted = running.actor.refit.remote(*self._given(), record)
        try:
            saved = self._ray.get(refitted, timeout=left_s if math.isfinite(left_s) else None)
        except self._ray.exceptions.RayError as error:
            self._kill(running)
            self._driver.ctx.reporter.on_note(
                f"{record.strategy} was not refitted on train and validation together: "
                f"{_first_line(error)}"
            )
            return None
        return None if saved is None else ImageClassifier.load(saved, self._driver.ctx.device)

    def forget(self, job: Job) -> None:
        """Delete the files of a trial that has ended; its process is free for the next one."""
        running = self._running.pop(job.number)
        if running.is_alive:
            self._idle.append(running.actor)
        for fold in range(len(self._driver.validation.folds)):
            self._storage.drop_checkpoint(job.number, fold)
        for name in ("trial", "refitted"):
            folder = self._storage.path / "classifiers" / f"{name}-{job.number}"
            shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        """Delete the files of all trials, after the run."""
        with self._storage.storage_errors(self._storage.path):
            shutil.rmtree(self._storage.path)

    def _new_actor(self, n_gpus: int) -> Any:
        n_cpus = min(share for _, share in self._shares(n_gpus))
        options = {
            "num_cpus": n_cpus,
            "num_gpus": n_gpus if self._has_gpus() else 0,
            "max_concurrency": 3,  # it answers while a trial runs
            "max_restarts": MAX_RESTARTS,
            "max_task_retries": -1,  # as often as the process starts again
        }
        return self._ray.remote(TrialActor).options(**options).remote(n_cpus)

    def _given(self) -> tuple[Any, TimeBudget, float]:
        """Return what a process needs for any fit: executor, time budget, deadline."""
        budget = self._driver.budget
        return self._sent, budget, budget.deadline_s - time.monotonic() + time.time()

    def _has_gpus(self) -> bool:
        return bool(self._ray.cluster_resources().get("GPU", 0))

    def _shares(self, n_gpus: int) -> Sequence[tuple[int, int]]:
        """Return how many processes with some GPUs each node that is alive can run.

        The second number is that of the cores of each.
        """
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        nodes = [(int(r.get("GPU", 0)) // n_gpus, int(r.get("CPU", 1))) for r in alive]
        if n_gpus == 1 and not self._has_gpus():
            nodes = [(1, int(r["CPU"])) for r in alive if r.get("CPU")]
        return [(n, max(1, cpus // n)) for n, cpus in nodes if n]

    def _look_at(self, running: _Running) -> None:
        """Pass on what a trial has sent; set its result if it has ended or must end."""
        if self._driver.interrupt.requested:
            self._end(running, "interrupted")
        elif time.monotonic() > running.ends_s + GRACE_S:
            self._end(running, "The time was up before the trial ended.")
        elif self._is_ready(running.result):
            self._end_with_result(running)
        elif self._is_ready(running.messages):
            # While its actor starts again elsewhere, nothing is lost but the scores on their way.
            with contextlib.suppress(self._ray.exceptions.RayActorError):
                self._pass_on(running, self._ray.get(running.messages))
            running.messages = running.actor.take.remote()

    def _end_with_result(self, running: _Running) -> None:
        errors = self._ray.exceptions
        try:
            with contextlib.suppress(errors.RayActorError, errors.GetTimeoutError):
                self._pass_on(running, self._ray.get(running.messages, timeout=GRACE_S))
            result, messages = self._ray.get(running.result)
        except errors.RayActorError as error:
            self._end(running, f"its process died: {_first_line(error)}")
            return
        except errors.RayTaskError as error:
            raise error.cause from error
        self._pass_on(running, messages)
        if result.saved is not None:
            classifier = ImageClassifier.load(result.saved, self._driver.ctx.device)
            self._driver.budget.expect_size(classifier.backbone.input_px)
            result = replace(result, classifier=classifier)
        running.future.set_result(result)

    def _pass_on(self, running: _Running, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, str):
                self._driver.ctx.reporter.on_note(message)
            elif running.on_score(running.job, message):
                running.actor.stop.remote(running.job.number)

    def _is_ready(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])

    def _end(self, running: _Running, reason: str) -> None:
        job, seconds = running.job, round(time.monotonic() - running.begun_s, 3)
        record = TrialRecord(job.number, job.strategy, job.settings, None, seconds, reason)
        self._kill(running)
        running.future.set_result(TrialResult(record))

    def _kill(self, running: _Running) -> None:
        running.is_alive = False
        self._ray.kill(running.actor)


def storage_of(folder: RunDir, given: Path | None) -> RunDir:
    """Return the folder of a run's checkpoints: in the run folder, or in one that was given."""
    path = folder.path.resolve()
    name = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    return RunDir(path / "ray" if given is None else given.absolute() / name, run=folder.path)


@contextlib.contextmanager
def trial_executor(local: LocalExecutor, run: RunOptions) -> Iterator[Executor]:
    """Give the executor of a run's trials: that of this process, or Ray for the time of the block.

    Raises
    ------
    TransferError
        If there is no cluster at the address.
    """
    if not run.uses_ray:
        yield local
        return
    storage = storage_of(local.folder, run.storage_path)
    with storage.storage_errors(storage.path):
        storage.path.mkdir(parents=True, exist_ok=True)
    with _connected(run) as ray:
        yield RayExecutor(local, storage, ray, run)


def check_gpus(options: Options, run: RunOptions) -> None:
    """Check that this machine has the GPUs that a run needs on it, and Ray if it needs Ray.

    That trials of a strategy that trains no network use a single GPU is noted.

    Raises
    ------
    TransferError
        If it does not.
    """
    if run.uses_ray and importlib.util.find_spec("ray") is None:
        raise TransferError("--ray needs an extra: pip install 'tl-advisor[ray]'.")
    is_probe = options.strategy != AUTO and not get_strategy(options.strategy).trains_network
    if run.gpus_per_trial > 1 and is_probe:
        options.on_note(f"--gpus-per-trial has no effect: {options.strategy} trains no network.")
    n = run.gpus or run.gpus_per_trial
    if run.ray_address is not None or (run.gpus is None and n == 1):
        return
    device = torch.device("cuda") if run.ray else make_device(options.device)
    found = torch.cuda.device_count() - (device.index or 0) if device.type == "cuda" else 0
    if n > found:
        name = "--gpus" if run.gpus else "--gpus-per-trial"
        raise TransferError(
            f"{name} {n}: this machine has {found} GPUs, counted from {device}. Use fewer, or "
            "leave it out."
        )


@contextlib.contextmanager
def _connected(run: RunOptions) -> Iterator[ModuleType]:
    """Join a cluster, or start Ray on this machine; leave or stop it at the end of the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = importlib.import_module("ray")
    arguments: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if run.ray_address is None:
        arguments |= {"num_gpus": run.gpus, "include_dashboard": False}
        arguments["object_store_memory"] = OBJECT_STORE_BYTES
    try:
        ray.init(address=run.ray_address or "local", **arguments)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TransferError(
            f"Ray cannot be used: {_first_line(error)} Give --ray for this machine, or the "
            "address of a cluster: --ray-address HOST:6379."
        ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints warnings among the answers
            yield ray
    finally:
        ray.shutdown()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
