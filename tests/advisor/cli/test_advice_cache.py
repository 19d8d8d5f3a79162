"""Cache of complete advice: what its key depends on, and that a hit measures nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from advisor.advise import advise
from advisor.cli import advice_cache
from advisor.cli.advice_cache import advice_key, store_advice, stored_advice
from advisor.cli.app import advise_app
from advisor.types.options import Options
from strategies.core.cache import ArrayCache
from strategies.data import inspection

runner = CliRunner()


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "SETTLED_S", 0.0)


def test_stored_advice_is_read_back_unchanged(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_folder("data", 8)
    options = Options(input_px=64, cache_dir=tmp_path / "cache")
    cache = ArrayCache(tmp_path / "cache")
    key = advice_key(data, options)
    assert key is not None
    assert stored_advice(cache, key) is None

    advice = advise(data, options)
    store_advice(cache, key, advice)

    assert stored_advice(cache, key) == advice
    assert stored_advice(cache, None) is None
    assert stored_advice(cache, "another key") is None


def test_advice_that_changes_in_the_round_trip_is_not_stored(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    advice = advise(make_folder("data", 8), Options(input_px=64, cache_dir=tmp_path / "cache"))
    cache = ArrayCache(tmp_path / "cache")
    store_advice(cache, "odd", replace(advice, seconds=float("nan")))

    assert stored_advice(cache, "odd") is None


def test_the_key_does_not_depend_on_the_cache_folder(make_folder: Callable[..., Path]) -> None:
    data = make_folder("data", 4)

    assert advice_key(data, Options()) == advice_key(data, Options(cache_dir=Path("elsewhere")))


def _rewrite(data: Path) -> None:
    path = data / "class0" / "000.png"
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _relabel(data: Path) -> None:
    (data / "class0" / "000.png").rename(data / "class1" / "from0.png")


def _make_split(data: Path) -> None:
    for split in ("train", "val"):
        (data / split).mkdir()
    for label in range(3):
        (data / f"class{label}").rename(data / "train" / f"class{label}")
        (data / "val" / f"class{label}").mkdir()
        moved = data / "train" / f"class{label}" / "000.png"
        moved.rename(data / "val" / f"class{label}" / "000.png")


CHANGES: dict[str, Callable[[Path], None]] = {
    "a changed image": _rewrite,
    "a changed label": _relabel,
    "a split": _make_split,
    "a removed image": lambda data: (data / "class2" / "003.png").unlink(),
    "an added text file": lambda data: (data / "class2" / "notes.txt").write_text("x"),  # type: ignore[dict-item,return-value]
    "a renamed class": lambda data: (data / "class2").rename(data / "other"),  # type: ignore[dict-item,return-value]
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_change_the_key(make_folder: Callable[..., Path], change: str) -> None:
    data = make_folder("data", 4)
    before = advice_key(data, Options())

    CHANGES[change](data)

    assert advice_key(data, Options()) != before


@pytest.mark.parametrize(
    "option",
    [
        {"backbone": "tf_efficientnet_lite1"},
        {"backbone": "tf_efficientnet_lite0,tf_efficientnet_lite1"},
        {"prefer": "cheap"},
        {"input_px": 64},
        {"strategy": "layer_svm"},
        {"seed": 1},
        {"device": "cpu"},
        {"group_by": "none"},
        {"max_images": 7},
        {"max_quarantine": 0.2},
    ],
    ids=str,
)
def test_every_option_changes_the_key(
    make_folder: Callable[..., Path], option: dict[str, object]
) -> None:
    data = make_folder("data", 4)

    assert advice_key(data, Options(**option)) != advice_key(data, Options())


def test_the_time_for_the_fit_changes_the_key(make_folder: Callable[..., Path]) -> None:
    data = make_folder("data", 4)
    keys = {advice_key(data, Options(), time_s) for time_s in (None, 30.0, 60.0)}
    assert len(keys) == 3


def test_separate_folders_are_part_of_the_key(make_folder: Callable[..., Path]) -> None:
    data, separate = make_folder("data", 4), make_folder("separate", 4, seed=1)
    for option in ("val", "test", "reference"):
        options = Options(**{option: separate})
        before = advice_key(data, options)
        assert before != advice_key(data, Options())
        _rewrite(separate)
        assert advice_key(data, options) not in (before, None)


def test_another_program_or_machine_changes_the_key(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder("data", 4)
    before = advice_key(data, Options())
    program = advice_cache._program()

    monkeypatch.setattr(advice_cache, "_program", lambda: program + "changed")
    assert advice_key(data, Options()) != before
    monkeypatch.undo()
    monkeypatch.setattr(inspection, "SETTLED_S", 0.0)
    assert advice_key(data, Options()) == before
    monkeypatch.setattr(advice_cache, "_machine", lambda: ("another",))
    assert advice_key(data, Options()) != before


def test_the_program_digest_depends_on_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "advisor").mkdir()
    (tmp_path / "strategies").mkdir()
    (tmp_path / "advisor" / "priors.json").write_text("1")
    monkeypatch.setattr(
        advice_cache, "__file__", str(tmp_path / "advisor" / "cli" / "advice_cache.py")
    )
    digest = advice_cache._program.__wrapped__  # bypasses the cache of the function
    before = digest()
    (tmp_path / "advisor" / "priors.json").write_text("2")

    assert digest() != before


def test_inputs_that_cannot_be_identified_have_no_key(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder("data", 4)
    assert advice_key(data, Options(backbone="resnet18")) is None
    assert advice_key(data, Options(backbone="tf_efficientnet_lite0,resnet18")) is None
    assert advice_key(data, Options(backbone="hf-hub:someone/something")) is None
    assert advice_key(Path("hfds/mnist"), Options()) is None
    monkeypatch.setattr(inspection, "SETTLED_S", 3600.0)
    assert advice_key(data, Options()) is None


def test_a_second_call_uses_the_cache_and_reports_it(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(make_folder("data", 8)), "--json", "--input-px", "64"]
    command += ["--cache-dir", str(tmp_path / "cache")]
    first = runner.invoke(advise_app, command)
    assert first.exit_code == 0, first.output

    def fail(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(sys.modules["advisor.advise"], "advise", fail)
    second = runner.invoke(advise_app, command)

    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout) == json.loads(first.stdout)
    assert "from the cache" in second.stderr
    assert "from the cache" not in first.stderr


def test_a_cache_hit_imports_no_heavy_library() -> None:
    code = (
        "import sys; import advisor.cli.advice_cache, advisor.types.options; "
        "import advisor.report.to_json, "
        "advisor.report.brief, advisor.report.markdown, advisor.report.terminal; "
        "print([m for m in ('torch', 'timm', 'optuna', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
