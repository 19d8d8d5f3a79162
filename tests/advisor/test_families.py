"""Nine families of networks, from advice to a saved classifier, as a user runs them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from advisor.cli.app import advise_app, auto_app
from strategies import fine_tuning
from strategies.models.architectures import pretrained
from strategies.models.architectures.pretrained import weights_digest
from strategies.training.loop import ROUNDS
from tests.conftest import forget_backbones
from tests.families import FAMILIES, Family, write_network

TINY = Family("test_vit", "layer", class_token=True, prefix_tokens=1)


def _run(app: object, *arguments: object) -> Result:
    found = CliRunner().invoke(app, [str(a) for a in arguments])  # type: ignore[arg-type]
    assert found.exit_code == 0, found.output
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_run_leads_to_a_classifier_that_predicts_the_same_without_its_backbone(
    make_folder: Callable[..., Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning, "default_steps", lambda n_train, batch_size: ROUNDS)
    data, name = make_folder("data", 12), write_network(FAMILIES[kind], tmp_path / "network")
    px = FAMILIES[kind].sizes[0]
    given = ["--backbone", name, "--cache-dir", tmp_path / "cache", "--input-px", px]
    advice = json.loads(_run(advise_app, data, "--json", *given).stdout)
    assert advice["recommendations"]
    run, image = tmp_path / "run", data / "class0" / "000.png"
    _run(auto_app, "run", data, "--trials", 2, "--no-control", "--out", run, *given)
    before = _run(auto_app, "predict", run, image, "--json").stdout

    shutil.rmtree(tmp_path / "network")
    shutil.rmtree(tmp_path / "cache")
    forget_backbones()  # as in another process

    assert _run(auto_app, "predict", run, image, "--json").stdout == before


def test_an_advice_reads_and_hashes_the_weights_once(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_backbones()
    hashed: list[int] = []

    def count(state: dict[str, object]) -> str:
        hashed.append(len(state))
        return weights_digest(state)  # type: ignore[arg-type]

    monkeypatch.setattr(pretrained, "weights_digest", count)
    name = write_network(TINY, tmp_path / "network")
    given = ["--backbone", name, "--cache-dir", tmp_path / "cache", "--input-px", 96]
    found = _run(advise_app, make_folder("data", 8), "--profile", *given)

    assert len(hashed) == 1
    assert "hashing" in found.stderr


def test_tiny_images_choose_a_size_that_the_network_takes(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    forget_backbones()
    patches = Family("test_vit", "layer", arguments={"patch_size": 14, "img_size": 154})
    name = write_network(patches, tmp_path / "network")
    given = ["--backbone", name, "--cache-dir", tmp_path / "cache"]
    advice = json.loads(_run(advise_app, make_folder("data", 8), "--json", *given).stdout)

    assert advice["profile"]["input_px"] == 126
    (choice,) = [c for c in advice["choices"] if c["name"] == "input_px"]
    assert choice["value"] == "126"
    assert "multiples of 14 px" in choice["source"]


def test_a_size_that_the_network_refuses_ends_with_its_sizes_and_no_traceback(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    forget_backbones()
    name = write_network(TINY, tmp_path / "network")
    given = ["--backbone", name, "--cache-dir", str(tmp_path / "cache"), "--input-px", "100"]
    found = CliRunner().invoke(advise_app, [str(make_folder("data", 8)), *given])

    assert found.exit_code == 2
    message = " ".join(found.stderr.split())
    assert "at 100 px: it takes multiples of 16 px. The nearest is --input-px 96" in message
