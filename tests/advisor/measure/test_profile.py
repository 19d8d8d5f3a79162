import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.measure import profile as profile_module
from advisor.measure.profile import N_TIMED, measure
from strategies.core.context import RunContext
from strategies.core.progress import Reporter
from strategies.data.dataset import load_dataset
from strategies.models.backbone import Backbone


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
