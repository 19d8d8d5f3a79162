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
from advisor.cli import advice_cache as answers
from advisor.cli.advice_cache import stored_advice, store_advice, question
from advisor.cli.app import advise_app
from advisor.types.options import Options
from strategies.core.cache import ArrayCache
from strategies.data import inspection as reading

runner = CliRunner()


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SETTLED_S", 0.0)


def test_an_advice_reads_back_as_what_it_was(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_folder("data", 8)
    options = Options(input_px=64, cache_dir=tmp_path / "cache")
    cache = ArrayCache(tmp_path / "cache")
    name = question(data, options)
    assert name is not None
    assert stored_advice(cache, name) is None

    advice = advise(data, options)
    store_advice(cache, name, advice)

    assert stored_advice(cache, name) == advice
    assert stored_advice(cache, None) is None
    assert stored_advice(cache, "another name") is None


def test_an_advice_that_does_not_read_back_is_not_kept(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    advice = advise(make_folder("data", 8), Options(input_px=64, cache_dir=tmp_path / "cache"))
    cache = ArrayCache(tmp_path / "cache")
    store_advice(cache, "odd", replace(advice, seconds=float("nan")))

    assert stored_advice(cache, "odd") is None


def test_the_same_question_has_the_same_name(make_folder: Callable[..., Path]) -> None:
    data = make_folder("data", 4)

    assert question(data, Options()) == question(data, Options(cache_dir=Path("elsewhere")))


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
    "an image less": lambda data: (data / "class2" / "003.png").unlink(),
    "a file that is no image": lambda data: (data / "class2" / "notes.txt").write_text("x"),  # type: ignore[dict-item,return-value]
    "a renamed class": lambda data: (data / "class2").rename(data / "other"),  # type: ignore[dict-item,return-value]
}


@pytest.mark.parametrize("change", CHANGES)
def test_data_that_changed_are_another_question(
    make_folder: Callable[..., Path], change: str
) -> None:
    data = make_folder("data", 4)
    before = question(data, Options())

    CHANGES[change](data)

    assert question(data, Options()) != before


@pytest.mark.parametrize(
    "option",
    [
        {"backbone": "tf_efficientnet_lite1"},
        {"backbone": "tf_efficientnet_lite0,tf_efficientnet_lite1"},
        {"prefer": "cheap"},
        {"pilot": "off"},
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
def test_every_option_makes_another_question(
    make_folder: Callable[..., Path], option: dict[str, object]
) -> None:
    data = make_folder("data", 4)

    assert question(data, Options(**option)) != question(data, Options())


def test_a_folder_given_apart_belongs_to_the_question(make_folder: Callable[..., Path]) -> None:
    data, apart = make_folder("data", 4), make_folder("apart", 4, seed=1)
    for option in ("val", "test", "reference"):
        options = Options(**{option: apart})
        before = question(data, options)
        assert before != question(data, Options())
        _rewrite(apart)
        assert question(data, options) not in (before, None)


def test_another_program_is_another_question(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder("data", 4)
    before = question(data, Options())
    program = answers._program()

    monkeypatch.setattr(answers, "_program", lambda: program + "changed")
    assert question(data, Options()) != before
    monkeypatch.undo()
    monkeypatch.setattr(reading, "SETTLED_S", 0.0)
    assert question(data, Options()) == before
    monkeypatch.setattr(answers, "_machine", lambda: ("another",))
    assert question(data, Options()) != before


def test_the_program_is_known_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "advisor").mkdir()
    (tmp_path / "strategies").mkdir()
    (tmp_path / "advisor" / "priors.json").write_text("1")
    monkeypatch.setattr(answers, "__file__", str(tmp_path / "advisor" / "cli" / "advice_cache.py"))
    read_again = answers._program.__wrapped__  # within a process, it is read once
    before = read_again()
    (tmp_path / "advisor" / "priors.json").write_text("2")

    assert read_again() != before


def test_what_cannot_be_told_without_measuring_has_no_name(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder("data", 4)
    assert question(data, Options(backbone="resnet18")) is None
    assert question(data, Options(backbone="tf_efficientnet_lite0,resnet18")) is None
    assert question(data, Options(backbone="hf-hub:someone/something")) is None
    assert question(Path("hfds/mnist"), Options()) is None
    monkeypatch.setattr(reading, "SETTLED_S", 3600.0)
    assert question(data, Options()) is None


def test_a_second_call_measures_nothing_and_says_so(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(make_folder("data", 8)), "--json", "--input-px", "64"]
    command += ["--cache-dir", str(tmp_path / "cache")]
    first = runner.invoke(advise_app, command)
    assert first.exit_code == 0, first.output

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("advisor.advise.advise", refuse)
    second = runner.invoke(advise_app, command)

    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout) == json.loads(first.stdout)
    assert "from the cache" in second.stderr
    assert "from the cache" not in first.stderr


def test_an_answer_and_its_report_need_no_network_library() -> None:
    code = (
        "import sys; import advisor.cli.advice_cache, advisor.types.options; "
        "import advisor.report.to_json, "
        "advisor.report.markdown, advisor.report.terminal; "
        "print([m for m in ('torch', 'timm', 'optuna', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
