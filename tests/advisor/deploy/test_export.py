"""Export of a finished run: checked on its validation images, with a model card, and uploaded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from advisor.cli.app import auto_app
from advisor.deploy.export import Exported, export_run
from advisor.deploy.exports import agreement, hub
from advisor.deploy.exports.hub import Repository
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import image_rows
from strategies.core.errors import NotApplicable, StorageError, TransferError
from strategies.models.formats import timm_format
from tests.conftest import write_folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run, whose card an export may change."""
    return shutil.copytree(finished, tmp_path / "run")


def n_validation(run: Path) -> int:
    return sum(row.split == "val" for row in image_rows(RunDir(run)))


def test_the_command_exports_and_says_what_the_check_found(run: Path) -> None:
    code = "from advisor.cli.app import tl_auto; tl_auto()"
    command = [sys.executable, "-c", code, "export", str(run), "--format", "hf", "--json"]

    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )

    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    folder = Path(record["path"])
    assert folder == run / "export" / "hf"
    assert record["check"]["n"] == n_validation(run)
    assert record["check"]["agrees"] is True
    assert record["check"]["images"] == "validation images of the run"
    assert record["warnings"] == []
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["tl_advisor"]["check"] == record["check"]
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 3


def test_the_hub_folder_and_the_run_have_one_card_with_the_check(run: Path) -> None:
    before = ModelCard.load(run / "classifier" / "README.md")

    found = export_run(run, "hf")

    card = ModelCard.load(found.path / "README.md")
    own = ModelCard.load(run / "classifier" / "README.md")
    assert card.data.library_name == "timm"
    assert own.data.library_name == before.data.library_name == "tl-advisor"
    assert card.data.license == "apache-2.0"
    assert "timm" in card.data.tags
    assert card.data.eval_results[0].metric_type == "accuracy"
    test = json.loads((run / "outcome.json").read_text(encoding="utf-8"))["test"]
    assert card.data.eval_results[0].metric_value == pytest.approx(test["accuracy"]["mid"])
    for text in (card.text, own.text):
        assert text.startswith(before.text.split("## Limits")[0])
        assert "top-1 agreement with tl-auto predict 100.0%" in text
    assert 'timm.create_model("hf-hub:' in card.text


def test_a_card_tells_about_every_file_once(run: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_run(run, "timm", tmp_path / name)
    shutil.rmtree(tmp_path / "one")
    export_run(run, "timm", tmp_path / "one")

    text = (run / "classifier" / "README.md").read_text(encoding="utf-8")
    assert text.count("## Exports") == 1
    assert [text.count(f"### {name}\n") for name in ("one", "two")] == [1, 1]


def wrong_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timm's folders hold another normalisation than the classifier's."""
    right = timm_format.save_for_timm

    def save(net: Any, backbone: Any, classes: Any, folder: Path) -> None:
        right(net, SimpleNamespace(**{**vars(backbone), "mean": (0.9, 0.1, 0.5)}), classes, folder)

    monkeypatch.setattr(timm_format, "save_for_timm", save)


def test_wrong_preprocessing_is_reported_loudly_and_not_pushed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_mean(monkeypatch)
    monkeypatch.setattr("advisor.deploy.export.push", lambda *a: pytest.fail("it was pushed"))
    command = ["export", str(run), "--format", "timm"]

    result = CliRunner().invoke(auto_app, command)

    assert result.exit_code == 0, result.output
    assert "Warning: This export DISAGREES with tl-auto predict" in result.stderr
    assert "Do not use it" in result.stderr
    card = (run / "classifier" / "README.md").read_text(encoding="utf-8")
    assert "This export DISAGREES with tl-auto predict" in card
    with pytest.raises(TransferError, match=r"was not pushed: This export DISAGREES"):
        export_run(run, "hf", repository=Repository("me/mine"))


def test_an_export_without_images_says_that_it_was_not_checked(run: Path) -> None:
    (run / "images.csv").write_text(
        "path,label,split,digest,predicted,probability\n/gone/a.png,class0,val,00,,\n"
    )

    found = export_run(run, "timm")
    alone = export_run(run / "classifier", "timm", run / "alone")

    for done in (found, alone):
        assert done.agreement is None
        assert "Not checked against tl-auto predict" in done.sentences()[1]
        assert "--check DATA" in done.sentences()[1]
        config = json.loads((done.path / "config.json").read_text(encoding="utf-8"))
        assert config["tl_advisor"]["not_checked"] == done.reason
    assert "are gone" in str(found.reason)
    assert "is no run folder" in str(alone.reason)


def test_given_images_check_a_classifier_folder(run: Path, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "new", 4, seed=3)
    (data / "class0" / "torn.png").write_bytes(b"no image")

    found = export_run(run / "classifier", "timm", check_data=data)

    assert found.agreement is not None
    assert (found.agreement.n, found.agreement.about) == (12, "images of new")
    assert found.agreement.gain is not None
    assert "Accuracy on them" in " ".join(found.agreement.sentences())


def test_images_of_unknown_classes_are_checked_without_an_accuracy(
    run: Path, tmp_path: Path
) -> None:
    data = write_folder(tmp_path / "new", 4, seed=3)
    for number, folder in enumerate(sorted(data.iterdir())):
        folder.rename(data / f"other{number}")

    found = export_run(run, "timm", check_data=data).agreement

    assert found is not None
    assert found.gain is None
    assert "Accuracy on them" not in " ".join(found.sentences())


def test_int8_is_calibrated_on_train_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def fail(*_: object, **named: Any) -> None:
        given.update(named)
        raise StorageError("the disk is full")

    monkeypatch.setattr("advisor.deploy.export.export", fail)
    with pytest.raises(StorageError, match="the disk is full"):
        export_run(run, "onnx", precision="int8")
    train = {row.path for row in image_rows(RunDir(run)) if row.split == "train"}
    assert given["precision"] == "int8"
    assert set(given["calibration"]) == train


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onxx"], "Did you mean 'onnx'"),
        (["--precision", "flaot16"], "Did you mean 'float16'"),
        (["--format", "hf", "--precision", "int8"], "Use the format onnx for int8"),
        (["--check", "missing"], "--check missing does not exist"),
        (["--public"], "--public needs --push-to-hub"),
        (["--push-to-hub", "mine"], "must be OWNER/NAME, got 'mine'"),
        (["--push-to-hub", "a b/c"], "must be OWNER/NAME"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_advice(
    finished: Path, arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(auto_app, ["export", str(finished), *arguments])

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_target_that_exists_and_a_run_that_is_not_finished_are_refused(
    run: Path, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="already exists"):
        export_run(run, "timm", tmp_path)
    RunDir(run).set_phase("searching", 0.0)
    with pytest.raises(StorageError, match="tl-auto resume"):
        export_run(run, "timm")
    with pytest.raises(NotApplicable, match="Unknown format"):
        export_run(run, "x")


class FakeHub:
    """Stands for ``HfApi``: remembers what was uploaded."""

    endpoint = "https://hub.test"

    def __init__(self, *, private: bool = True) -> None:
        self.private, self.files, self.created = private, {}, []

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        self.created.append((name, private, exist_ok))
        return f"{self.endpoint}/{name}"

    def model_info(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.files = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}


def pushed(run: Path, api: FakeHub, monkeypatch: pytest.MonkeyPatch, *more: str) -> Exported:
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    arguments = ["export", str(run), "--format", "hf", "--push-to-hub", "me/mine", *more]
    result = CliRunner().invoke(auto_app, arguments)
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


def test_an_export_is_pushed_to_a_private_repository_with_its_card(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeHub()

    done = pushed(run, api, monkeypatch)

    assert done.code == 0, done.err
    assert "Pushed to https://hub.test/me/mine" in done.out
    assert api.created == [("me/mine", True, True)]
    assert set(api.files) == {"README.md", "config.json", "model.safetensors"}
    card = ModelCard(api.files["README.md"].decode())
    assert card.data.eval_results[0].task_type == "image-classification"
    assert card.data.library_name == "timm"


def test_a_private_export_is_not_pushed_to_a_repository_that_is_public(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeHub(private=False)

    done = pushed(run, api, monkeypatch)

    assert done.code == 2
    assert "is public. Nothing was uploaded. Give --public" in " ".join(done.err.split())
    assert not api.files


def test_a_public_repository_is_asked_for_by_a_flag(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeHub(private=False)

    assert pushed(run, api, monkeypatch, "--public").code == 0
    assert api.created == [("me/mine", False, True)]
    assert "README.md" in api.files


def test_without_a_network_the_export_is_kept_and_can_be_uploaded_later(run: Path) -> None:
    arguments = ["export", str(run), "--format", "hf", "--push-to-hub", "me/mine"]

    result = CliRunner().invoke(auto_app, arguments)  # tests have no network

    assert result.exit_code == 2
    message = " ".join(result.stderr.split())
    assert "me/mine cannot be pushed to https://huggingface.co" in message
    assert "hf upload me/mine" in message
    assert (run / "export" / "hf" / "model.safetensors").is_file()


def test_a_pt2_file_is_pushed_with_a_card_that_shows_its_use(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeHub()
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(agreement, "MAX_CHECKED", 3)

    found = export_run(run, "pt2", repository=Repository("me/mine"))

    assert found.agreement is not None
    assert found.agreement.n == 3
    assert found.agreement.agrees
    assert set(api.files) == {"README.md", "classifier.pt2"}
    card = ModelCard(api.files["README.md"].decode())
    assert card.data.library_name == "pytorch"
    assert 'torch.export.load("classifier.pt2").module()' in card.text
