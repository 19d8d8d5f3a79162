"""Trials on Ray: a cluster of two nodes on this machine; nodes die, and no number counts twice."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from advisor.cli.app import auto_app
from advisor.tune.search import Search, SearchResult
from advisor.tune.trials.executor import LocalExecutor
from advisor.tune.trials.ray_executor import (
    RayExecutor,
    check_gpus,
    storage_of,
    trial_executor,
)
from advisor.tune.trials.trial_actor import TrialActor
from advisor.types.events import Event
from advisor.types.options import DEFAULTS, Options, RunOptions
from advisor.types.outcome import TrialRecord
from strategies.core.cache import ArrayCache
from strategies.core.errors import StorageError, TransferError
from strategies.core.progress import Reporter
from strategies.models.classifier import ImageClassifier
from strategies.models.features import not_cached, pooled_features
from strategies.training.loop import ROUNDS
from tests.advisor.searching import Runner
from tests.advisor.tune.test_interventions import finding

SHM = Path("/dev/shm")
N_TRIALS = 6
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


def test_without_the_extra_ray_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    check_gpus(DEFAULTS, RunOptions())
    with pytest.raises(TransferError, match=r"pip install 'tl-advisor\[ray\]'"):
        check_gpus(DEFAULTS, RunOptions(ray=True))


def test_more_gpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    check_gpus(DEFAULTS, RunOptions(ray=True, gpus=4, gpus_per_trial=2))
    with pytest.raises(TransferError, match="--gpus 99: this machine has 4 GPUs"):
        check_gpus(DEFAULTS, RunOptions(ray=True, gpus=99))
    with pytest.raises(TransferError, match="--gpus-per-trial 5: this machine has 4 GPUs"):
        check_gpus(DEFAULTS, RunOptions(ray=True, gpus_per_trial=5))
    with pytest.raises(TransferError, match=r"--gpus-per-trial 2: this machine has 0 GPUs.* cpu"):
        check_gpus(Options(device="cpu"), RunOptions(gpus_per_trial=2))
    executor = "advisor.tune.trials.ray_executor"
    monkeypatch.setattr(f"{executor}.make_device", lambda name: torch.device(name))
    with pytest.raises(TransferError, match=r"--gpus-per-trial 3: .* 2 GPUs, counted from cuda:2"):
        check_gpus(Options(device="cuda:2"), RunOptions(gpus_per_trial=3))


def test_gpus_per_trial_has_no_effect_on_a_probe_and_a_note_says_so() -> None:
    notes: list[str] = []
    for strategy in ("linear_probe", "full_fine_tune", "auto"):
        options = Options(strategy=strategy, on_note=notes.append)
        check_gpus(options, RunOptions(ray_address="auto", gpus_per_trial=2))
    assert notes == ["--gpus-per-trial has no effect: linear_probe trains no network."]


def test_a_run_without_ray_runs_its_trials_in_this_process_and_never_imports_it(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # an import would fail
    executor = run.prepare().executor
    with trial_executor(executor, RunOptions()) as found:
        assert found is executor
        assert found.capacity == 1


def test_runs_that_share_a_storage_path_do_not_share_a_folder(run: Runner, tmp_path: Path) -> None:
    other = replace(run.folder, path=tmp_path / "elsewhere" / run.folder.path.name)
    own = storage_of(run.folder, None)
    found = {storage_of(folder, tmp_path / "shared").path for folder in (run.folder, other)}
    assert own.path.parent == run.folder.path.resolve()
    assert {path.parent for path in found} == {tmp_path / "shared"}
    assert len(found) == 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with one core each; afterwards no shared memory is left."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    utils = pytest.importorskip("ray.cluster_utils")
    before = sorted(SHM.iterdir())
    started = utils.Cluster(initialize_head=True, head_node_args=NODE)
    try:
        started.add_node(**NODE)
        yield started
    finally:
        started.shutdown()
    assert sorted(SHM.iterdir()) == before


def on_ray(
    run: Runner, cluster: Any, on_event: Callable[[Event], None], n_trials: int
) -> SearchResult:
    """Search on the cluster."""
    options = RunOptions(ray_address=cluster.address)
    search = prepared(run, n_trials)
    with trial_executor(search.executor, options) as executor:
        search = replace(search, trial_executor=executor, on_event=on_event)
        search.run()
        assert not search._running
        found = search.result()
        executor.clear()
    assert not storage_of(run.folder, None).path.exists()
    return found


def prepared(run: Runner, n_trials: int) -> Search:
    """Prepare trials whose hyperparameters depend on their number only."""
    run.advice = replace(run.advice, findings=(finding("TL208"),))
    return run.prepare(max_trials=n_trials, only="full_fine_tune")


def scored(records: tuple[TrialRecord, ...]) -> list[tuple[int, dict[str, Any], float | None]]:
    return [
        (r.number, dict(r.hyperparameters), r.val_accuracy and r.val_accuracy.mid) for r in records
    ]


@pytest.mark.ray
def test_two_nodes_find_the_scored_trials_that_one_process_finds(
    run: Runner, make_runner: Callable[[Path], Runner], tmp_path: Path, cluster: Any
) -> None:
    alone = prepared(make_runner(tmp_path / "alone"), N_TRIALS)
    alone.run()
    found = on_ray(run, cluster, run.events.append, N_TRIALS)
    assert scored(found.trials) == scored(alone.result().trials)
    assert [r.number for r in found.trials] == list(range(N_TRIALS))
    begun_before_an_end = [e.number for e in run.events if e.kind == "begun"][:2]
    first_end = next(i for i, e in enumerate(run.events) if e.kind == "ended")
    assert {e.number for e in run.events[:first_end]} == set(begun_before_an_end) == {0, 1}
    rounds = [e.step for e in run.events if e.kind == "round" and e.number == 0]
    assert rounds == list(range(1, ROUNDS + 1))
    assert run.folder.best() is not None


@pytest.mark.ray
def test_the_trial_of_a_dead_node_continues_elsewhere_from_its_checkpoint(
    run: Runner, cluster: Any
) -> None:
    nodes = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    seen: list[Event] = []

    def kill_at_round_2(event: Event) -> None:
        seen.append(event)
        if nodes and event.kind == "round" and event.step == 2:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            cluster.add_node(**NODE)

    found = on_ray(run, cluster, kill_at_round_2, 2)
    assert not nodes
    assert [r.number for r in found.trials] == [0, 1]
    assert all(r.val_accuracy is not None for r in found.trials)
    assert sorted(e.number for e in seen if e.kind == "ended") == [0, 1]
    studied = run.study("full_fine_tune").trials
    assert sorted(t.user_attrs["number"] for t in studied) == [0, 1]
    for number in (0, 1):  # no round was trained twice
        steps = [e.step for e in seen if e.kind == "round" and e.number == number]
        assert len(steps) == len(set(steps))


class CacheOfOneNode(ArrayCache):
    """A cache in the place of which other processes have an empty one of their own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayCache, (self.path.parent / "elsewhere",)


def with_cache(local: LocalExecutor, cache: ArrayCache) -> LocalExecutor:
    return replace(local, ctx=replace(local.ctx, cache=cache))


@pytest.mark.ray
def test_features_are_computed_on_the_nodes_and_are_those_of_one_process(
    run: Runner, cluster: Any, tmp_path: Path
) -> None:
    progress: list[tuple[str, int, int]] = []
    run.ctx = replace(run.ctx, reporter=Reporter(lambda *report: progress.append(report)))
    search = prepared(run, 1)
    alone = with_cache(search.executor, ArrayCache(tmp_path / "alone"))
    images = alone.dataset.fit_split
    expected = pooled_features(images, alone.backbone, alone.ctx, [alone.backbone.n_depths])
    local = with_cache(search.executor, CacheOfOneNode(tmp_path / "driver"))
    progress.clear()
    with trial_executor(local, RunOptions(ray_address=cluster.address)) as executor:
        assert isinstance(executor, RayExecutor)
        executor.compute_features(shard=10)
        assert progress == [
            ("features", min(done, len(images)), len(images))
            for done in range(10, len(images) + 10, 10)
        ]
        assert not_cached(images, local.backbone, local.ctx) == ()  # all rows are the nodes'
        found = pooled_features(images, local.backbone, local.ctx, [local.backbone.n_depths])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        progress.clear()
        executor.compute_features(shard=10)
        assert progress == []  # none is computed again
        replace(search, executor=local, trial_executor=executor).run()  # by the same processes
    assert search.result().best.number == 0


def test_a_node_keeps_the_features_that_others_computed(run: Runner, tmp_path: Path) -> None:
    search, actor = prepared(run, 1), TrialActor(1)
    one, other = (with_cache(search.executor, ArrayCache(tmp_path / name)) for name in "ab")
    images, given = one.dataset.fit_split, (one.budget, time.time() + 600)
    rows = actor.features(one, *given, images, ())
    assert not_cached(images, other.backbone, other.ctx) == images
    actor.features(other, *given, (), [rows])
    assert not_cached(images, other.backbone, other.ctx) == ()
    late = with_cache(search.executor, ArrayCache(tmp_path / "c"))
    _, found = actor.features(late, late.budget, time.time() - 600, images, ())
    assert not found.keys() & {image.digest for image in images}  # there was no time


@pytest.mark.ray
def test_a_trial_on_two_gpus_scores_what_one_process_scores(
    run: Runner, make_runner: Callable[[Path], Runner], tmp_path: Path, cluster: Any
) -> None:
    alone = prepared(make_runner(tmp_path / "alone"), 1)
    alone.run()
    search, options = prepared(run, 2), RunOptions(ray_address=cluster.address, gpus_per_trial=2)
    with (
        pytest.raises(TransferError, match="--gpus-per-trial 2: no node of the cluster"),
        trial_executor(search.executor, options),
    ):
        pass
    # The GPUs are pretended: the processes of a trial compute on the CPU.
    node = cluster.add_node(num_gpus=17, **NODE)
    try:
        with trial_executor(search.executor, options) as executor:
            assert executor.capacity == 8
            job = search._next_job()
            assert job is not None
            (done,) = executor.wait([executor.submit(job, lambda *given: False)])
        more = replace(options, gpus_per_trial=17)
        with trial_executor(search.executor, more) as executor:
            (refused,) = executor.wait([executor.submit(job, lambda *given: False)])
    finally:
        cluster.remove_node(node)
    record, (expected,) = done.result().record, alone.result().trials
    assert record.reason is None
    assert record.val_accuracy == expected.val_accuracy
    assert "17 GPUs: a batch of 32 images" in str(refused.result().record.reason)


@pytest.mark.ray
def test_time_and_ctrl_c_end_trials_and_errors_of_the_disk_reach_the_driver(
    run: Runner, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = prepared(run, 3)
    job = search._next_job()
    assert job is not None
    with trial_executor(search.executor, RunOptions(ray_address=cluster.address)) as executor:
        assert executor.capacity == 2
        run.deadline_s = search.executor.budget.deadline_s = time.monotonic() - 60
        future = executor.submit(job, lambda *given: False)
        (done,) = executor.wait([future])
        assert "time was up" in str(done.result().record.reason)
        executor.forget(job)

        search.executor.budget.deadline_s = math.inf
        search.executor.interrupt.requested = True
        (done,) = executor.wait([executor.submit(job, lambda *given: False)])
        assert done.result().record.reason == "interrupted"
        assert done.result().record.hyperparameters == job.settings
        executor.forget(job)

        search.executor.interrupt.requested = False
        storage = storage_of(run.folder, None).path
        (storage / "checkpoints").write_text("in the way")
        future = executor.submit(job, lambda *given: False)
        with pytest.raises(StorageError, match=f"checkpoint.*tl-auto resume {run.folder.path}[.]"):
            executor.wait([future])


@pytest.mark.ray
def test_a_run_on_a_cluster_writes_its_outcome_and_leaves_no_checkpoints(
    cluster: Any, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    out, shared = tmp_path / "run", tmp_path / "shared"
    arguments = ["run", str(make_folder("data", 12)), "--out", str(out), "--input-px", "32"]
    arguments += ["--strategy", "layer_svm", "--trials", "2", "--cache-dir", str(tmp_path / "c")]
    arguments += ["--ray-address", cluster.address, "--storage-path", str(shared), "--no-control"]
    found = CliRunner().invoke(auto_app, arguments)
    assert found.exit_code == 0, found.output
    outcome = json.loads((out / "outcome.json").read_text())
    assert [t["number"] for t in outcome["trials"]] == [0, 1]
    assert all(t["val_accuracy"] for t in outcome["trials"])
    kept = json.loads((out / "classifier" / "trial.json").read_text())
    assert kept["refitted"]  # a probe is fitted again to train and validation, on its node
    ImageClassifier.load(out / "classifier")
    assert list(shared.iterdir()) == []
