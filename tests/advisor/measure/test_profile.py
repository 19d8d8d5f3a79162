import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from advisor.measure import profile as profile_module
from advisor.measure.profile import N_TIMED, measure
from strategies.core.context import RunContext
from strategies.core.progress import Reporter
from strategies.data.dataset import load_dataset
from strategies.models import features
from strategies.models.backbone import Backbone


@pytest.mark.parametrize("per_class", [8, 40], ids=["all images are timed", "some are timed"])
def test_under_a_time_limit_a_cached_time_per_image_does_not_count(
    make_folder: Callable[..., Path], backbone: Backbone, ctx: RunContext, per_class: int
) -> None:
    """It may have been measured on a busy machine, and would end every later run early."""
    dataset, small = load_dataset(make_folder("d", per_class)), replace(backbone, input_px=32)
    measure(dataset, small, ctx)
    stale = np.array([1e6], dtype=np.float32)
    ctx.cache.put(features._space(small, ctx), {features._TIME: stale})
    notes: list[str] = []
    hurried = replace(
        ctx, deadline_s=time.monotonic() + 600, reporter=Reporter(on_note=notes.append)
    )

    assert measure(dataset, small, ctx)[0].ms_per_image == 1e6
    profile = measure(dataset, small, hurried)[0]

    assert profile.ms_per_image < 10_000
    assert profile.n_measured == len(dataset.fit_split)
    assert not notes


def test_under_a_time_limit_the_sample_is_reduced_to_fit_into_its_share_of_the_time(
    make_folder: Callable[..., Path],
    backbone: Backbone,
    ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, small = load_dataset(make_folder("d", 40)), replace(backbone, input_px=32)
    notes: list[str] = []
    hurried = replace(
        ctx, deadline_s=time.monotonic() + 600, reporter=Reporter(on_note=notes.append)
    )
    every = len(dataset.fit_split)

    assert measure(dataset, small, ctx)[0].n_measured == every
    assert measure(dataset, small, hurried)[0].n_measured == every
    assert not notes

    monkeypatch.setattr(profile_module, "EVIDENCE_SHARE", 1e-9)
    few = measure(dataset, small, hurried)[0].n_measured
    assert few == pytest.approx(N_TIMED, abs=2)
    assert few < every
    assert f"{N_TIMED} of {every} images" in notes[0]
    assert measure(dataset, small, ctx)[0].n_measured == every
