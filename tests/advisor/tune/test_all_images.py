"""A run learns from all images, and its advice is that of the sample."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from advisor.advise import Prepared, advise, prepare
from advisor.report.to_json import advice_record
from advisor.tune.all_images import AMPLE_SHARE, PASS_SHARES, affordable, learn_from_all
from advisor.tune.driver import auto, check_split
from advisor.tune.run_dir.directory import RunDir
from advisor.types.options import Options, RunOptions
from advisor.types.profile import Profile
from strategies.core.context import RunContext
from strategies.core.errors import DataError
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset, load_dataset
from strategies.models.backbone import Backbone
from tests.advisor.profiles import profile_of

TIMES = {"seconds", "ms_per_image", "head_s", "build_s", "passes_per_trained_image"}
N = 60


@pytest.fixture
def root(make_folder: Callable[..., Path]) -> Path:
    return make_folder("many", N)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(
        input_px=32,
        max_images=45,
        strategy="linear_probe",
        workers=1,
        cache_dir=tmp_path / "cache",
    )


def without_times(record: Any) -> Any:
    """Return JSON values without what depends on the speed of the machine at this moment."""
    if isinstance(record, dict):
        slow = TIMES | {"frontier"}
        return {k: without_times(v) for k, v in record.items() if k not in slow}
    return [without_times(v) for v in record] if isinstance(record, list) else record


def test_a_run_learns_from_all_images_and_prints_the_advice_of_the_sample(
    root: Path, options: Options, tmp_path: Path
) -> None:
    outcome = auto(root, tmp_path / "run", options, RunOptions(time_s=600, max_trials=1))

    advice = json.loads((tmp_path / "run" / "advice.json").read_text())
    alone = json.loads(json.dumps(advice_record(advise(root, options))))
    assert without_times(advice) == without_times(alone)
    assert outcome.advice.profile.n < options.max_images
    assert outcome.n_train == pytest.approx(0.64 * 3 * N, abs=4)
    assert outcome.test is not None
    assert outcome.test.n == pytest.approx(0.2 * 3 * N, abs=4)
    assert outcome.best.n_train is None
    assert outcome.best.val_accuracy is not None
    written = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert written["n_train"] == outcome.n_train


def test_without_a_limit_the_advice_is_measured_on_all_images(
    root: Path, options: Options
) -> None:
    prepared = prepare(root, replace(options, max_images=None), keep_rest=True)
    assert len(prepared.dataset.fit_split) + len(prepared.dataset.test or ()) == 3 * N
    assert not prepared.dataset.remainder.counts


@pytest.fixture
def sample(root: Path) -> Dataset:
    return load_dataset(root, max_images=45, keep_rest=True)


@pytest.fixture
def prepared(sample: Dataset, backbone: Backbone, ctx: RunContext) -> Prepared:
    return Prepared(sample, backbone, (), (), Options(), ctx)


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    found = RunDir.create(tmp_path / "run")
    found.write("run.json", {})
    return found


def with_speed(n_in_time: float, left_s: float = 1000.0) -> Profile:
    """Return a profile of a machine that passes so many images in their share of the time."""
    ms = 1000 * PASS_SHARES["train"] * left_s / n_in_time
    return replace(profile_of(), ms_per_image=ms)


def test_a_pass_over_a_split_takes_no_more_than_its_share_of_the_time(sample: Dataset) -> None:
    for left_s in (0.0, 10.0, 100.0, 1e6, math.inf):
        added = affordable(sample, left_s, 0.1)["train"]
        in_time = PASS_SHARES["train"] * left_s / 0.1
        assert 0 <= added <= 3 * N - 45
        assert added in (0, 3 * N - 45) or in_time - 1 < 45 + added <= in_time
    assert affordable(sample, 0.0, 0.1) == {"train": 0}
    assert affordable(sample, math.inf, 0.1) == {"train": 3 * N - 45}


def test_given_splits_have_their_own_shares(make_folder: Callable[..., Path]) -> None:
    root = make_folder("given/train", 30).parent
    make_folder("given/test", 30, seed=1)
    sample = load_dataset(root, max_images=30, keep_rest=True)
    added = affordable(sample, 600.0, 1.0)
    assert added == {"train": 60, "test": int(PASS_SHARES["test"] * 600) - 30}


def test_a_resumed_run_adds_the_images_that_the_first_session_had_time_for(
    prepared: Prepared, folder: RunDir
) -> None:
    limited = replace(prepared, ctx=prepared.ctx.with_deadline(time.monotonic() + 1000))
    first = learn_from_all(folder, limited, with_speed(90.5), by_time=True)
    again = learn_from_all(folder, prepared, with_speed(1e9), by_time=True)

    assert 43 <= folder.settings()["n_added"]["train"] <= 45
    n = len(first.dataset.fit_split) + len(first.dataset.test or ())
    assert n == 45 + folder.settings()["n_added"]["train"]
    assert again.dataset == first.dataset
    assert first.measured == prepared.dataset


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_a_run_with_a_number_of_trials_takes_all_images_unless_their_pass_takes_half_of_the_time(
    prepared: Prepared, folder: RunDir, share: float
) -> None:
    left_s = 1000.0
    limited = replace(prepared, ctx=prepared.ctx.with_deadline(time.monotonic() + left_s))
    s_per_image = share * AMPLE_SHARE * left_s / (3 * N)
    profile = replace(profile_of(), ms_per_image=1000 * s_per_image)
    found = learn_from_all(folder, limited, profile, by_time=False).dataset
    in_time = PASS_SHARES["train"] * left_s / s_per_image
    assert in_time < 3 * N
    n = len(found.fit_split) + len(found.test or ())
    assert n == pytest.approx(3 * N if share < 1 else in_time, abs=2)


def test_without_time_for_more_the_sample_is_learnt_from_and_a_note_says_so(
    prepared: Prepared, folder: RunDir
) -> None:
    notes: list[str] = []
    ctx = replace(prepared.ctx, reporter=Reporter(on_note=notes.append))
    limited = replace(prepared, ctx=ctx.with_deadline(time.monotonic() + 1000))
    found = learn_from_all(folder, limited, with_speed(1.0), by_time=True)
    assert found.dataset == prepared.dataset
    assert found.measured is None
    (note,) = notes
    assert "there is no time for the other 135" in note


def test_a_run_refuses_to_go_on_if_an_image_outside_the_sample_has_changed(
    prepared: Prepared, folder: RunDir
) -> None:
    found = learn_from_all(folder, prepared, with_speed(1e9), by_time=True)
    check_split(folder, found.dataset, "all_images_sha256")
    new = ({p.path for p in found.dataset.train} - {p.path for p in prepared.dataset.train}).pop()
    new.write_bytes(next(p.path for p in found.dataset.val).read_bytes())
    again = learn_from_all(folder, prepared, with_speed(1e9), by_time=True)
    with pytest.raises(DataError, match="has changed since"):
        check_split(folder, again.dataset, "all_images_sha256")
