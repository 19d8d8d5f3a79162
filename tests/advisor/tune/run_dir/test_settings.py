"""Settings of a run in ``run.json``: read back as they were written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.settings import Settings, read_settings, settings_record
from advisor.types.options import DEFAULTS, RUN_DEFAULTS, Options, RunOptions
from strategies.core.errors import StorageError

SETTINGS = Settings(
    Path("hfds/mnist"),
    Options(input_px=96, val=Path("val"), cache_dir=Path("cache"), max_images=None, seed=2),
    RunOptions(time_s=59.5, max_trials=3, control=False, gpus_per_trial=2),
)


def written(settings: Settings, path: Path) -> Settings:
    folder = RunDir.create(path)
    folder.begin(settings_record(settings))
    return read_settings(folder)


@pytest.mark.parametrize("settings", [SETTINGS, Settings(Path("data"), DEFAULTS, RUN_DEFAULTS)])
def test_settings_are_read_back_as_they_were_written(settings: Settings, tmp_path: Path) -> None:
    assert written(settings, tmp_path / "run") == settings


def test_existing_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reference").mkdir()
    options = Options(reference=Path("reference"), root=Path("missing"))
    found = written(replace(SETTINGS, options=options), tmp_path / "run").options
    assert found == Options(reference=tmp_path / "reference", root=Path("missing"))


def test_an_option_that_an_earlier_release_did_not_have_gets_its_default(tmp_path: Path) -> None:
    folder = RunDir.create(tmp_path / "run")
    record = json.loads(json.dumps(settings_record(SETTINGS)))
    del record["options"]["deterministic"]
    folder.begin(record)
    assert read_settings(folder) == SETTINGS


def test_an_incomplete_record_is_reported(tmp_path: Path) -> None:
    folder = RunDir.create(tmp_path / "run")
    record = json.loads(json.dumps(settings_record(SETTINGS)))
    del record["options"]
    folder.begin(record)
    with pytest.raises(StorageError, match=r"run\.json is incomplete: 'options'"):
        read_settings(folder)


@pytest.mark.parametrize(
    ("version", "phase", "is_read"),
    [(6, "searching", True), (5, "done", True), (5, "searching", False), (4, "done", False)],
)
def test_of_an_earlier_release_only_finished_runs_are_read(
    tmp_path: Path, version: int, phase: str, is_read: bool
) -> None:
    folder = RunDir.create(tmp_path / "run")
    folder.begin(settings_record(SETTINGS))
    folder.write("run.json", {**folder.settings(), "format_version": version})
    folder.write("state.json", {**folder.state(), "phase": phase})
    if is_read:
        assert RunDir.open(folder.path).settings()["format_version"] == version
        return
    with pytest.raises(StorageError, match=f"run format {version}.*Use the release that wrote it"):
        RunDir.open(folder.path)
