"""Driver of a run: options that have no effect are named."""

from pathlib import Path

from advisor.tune.driver import _note_unused_ddp
from advisor.tune.run_dir.settings import Settings
from advisor.types.options import Options, RunOptions


def test_ddp_has_no_effect_on_a_probe_and_a_note_says_so() -> None:
    notes: list[str] = []
    for strategy in ("linear_probe", "full_fine_tune", "auto"):
        options = Options(strategy=strategy, on_note=notes.append)
        _note_unused_ddp(Settings(Path("data"), options, RunOptions(ddp=2)))
    assert notes == ["--ddp has no effect: linear_probe trains no network."]
