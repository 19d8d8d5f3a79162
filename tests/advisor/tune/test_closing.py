"""What follows a search: the draft of the page, and whose control is fitted when."""

import time
from dataclasses import replace

import pytest

from advisor.advise import Prepared
from advisor.tune import closing, control
from advisor.tune.control import Control
from advisor.tune.time_budget import TimeBudget
from advisor.types.options import DEFAULTS
from advisor.types.outcome import Ended, TrialRecord
from strategies.core.context import RunContext
from tests.advisor.searching import Runner


@pytest.fixture
def prepared(run: Runner) -> Prepared:
    return Prepared(run.dataset, run.backbone, (), (), DEFAULTS, run.ctx)


def budget(seconds: float) -> TimeBudget:
    return TimeBudget(time.monotonic() + seconds, 0, 1, {64: 0.001}, control_s=0.4 * seconds)


def test_a_page_is_there_before_the_search_and_its_last_version_needs_no_map(
    run: Runner, prepared: Prepared
) -> None:
    draft = closing.draft_page(run.folder, run.advice, prepared, 100.0)
    assert len(draft.gallery.points) == len(run.dataset.fit_split)
    assert 0 < draft.seconds < 60
    assert "<html" in (run.folder.path / "report.html").read_text()


def test_a_page_in_a_hurry_has_no_map(run: Runner, prepared: Prepared) -> None:
    draft = closing.draft_page(run.folder, run.advice, prepared, 0.0)
    assert draft.gallery.points == ()
    assert draft.gallery.n_images == len(run.dataset.fit_split)


def test_the_early_control_of_a_probe_stands_while_that_probe_leads(
    run: Runner, prepared: Prepared
) -> None:
    run(max_trials=1)
    early = control.early_control(run.folder, prepared, budget(600))
    assert early is not None
    assert early.of == "linear_probe"
    assert control.last_control(run.folder, prepared, budget(600), "time", early) is early

    other = replace(early, of="layer_svm")
    fresh = control.last_control(run.folder, prepared, budget(600), "time", other)
    assert fresh is not None
    assert fresh.of == "linear_probe"
    assert control.last_control(run.folder, prepared, budget(-1), "time", other) is other


def test_another_probe_gets_a_control_of_its_own_only_if_its_whole_share_is_left(
    run: Runner, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(max_trials=1)
    early = control.early_control(run.folder, prepared, budget(600))
    assert early is not None
    other = replace(early, of="layer_svm")
    short = replace(budget(600), control_s=700.0)
    monkeypatch.setattr(control, "fit_control", lambda *given: pytest.fail("a futile fit"))
    assert control.last_control(run.folder, prepared, short, "time", other) is other


def test_a_training_that_leads_waits_for_its_control_until_the_end(
    run: Runner, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = TrialRecord(1, "full_fine_tune", {"input_px": None}, None, 1.0, None)
    monkeypatch.setattr(control.RunDir, "best", lambda self: (tuned, False))
    assert control.early_control(run.folder, prepared, budget(600)) is None

    given: list[float] = []

    def fit(best: object, dataset: object, backbone: object, ctx: RunContext) -> Control | None:
        given.append(ctx.seconds_left())
        return None

    monkeypatch.setattr(control, "fit_control", fit)
    early_and_late: tuple[Ended, ...] = ("time", "unbeatable")
    for ended in early_and_late:
        control.last_control(run.folder, prepared, budget(600), ended, None)
    assert given == pytest.approx([599, 240], abs=2)  # all that is left, or its share alone


def test_what_owes_nothing_to_pretraining_has_no_control(
    run: Runner, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(max_trials=1)
    early = control.early_control(run.folder, prepared, budget(600))
    scratch = TrialRecord(1, "from_scratch", {}, None, 1.0, None)
    monkeypatch.setattr(control.RunDir, "best", lambda self: (scratch, False))
    assert control.last_control(run.folder, prepared, budget(600), "time", early) is None
