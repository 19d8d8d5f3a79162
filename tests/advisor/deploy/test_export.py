"""Export of a finished run."""

from pathlib import Path

import torch

from advisor.deploy.export import export_run
from advisor.report.files import CARD_FILE
from advisor.tune.run_dir.directory import RunDir
from strategies.core.atomic_files import write_text
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, make_network


def test_the_hub_folder_has_the_card_of_the_run_with_front_matter(
    backbone: Backbone, tmp_path: Path
) -> None:
    folder, depths = RunDir(tmp_path), (backbone.n_depths,)
    folder.begin({})
    folder.set_phase("done", 0.0)
    network = make_network(backbone, depths, 3).eval()
    torch.nn.init.normal_(network.head.weight, std=0.01)
    classifier = ImageClassifier(("a", "b", "c"), backbone, depths, network, "linear_probe", {})
    classifier.save(tmp_path / "classifier")
    write_text(tmp_path / CARD_FILE, "# Image classifier\n")

    card = (export_run(tmp_path, "hf", None) / "README.md").read_text(encoding="utf-8")

    assert card.startswith('---\nlibrary_name: "timm"\n')
    assert f'license: "{backbone.licence}"\n---\n' in card
    assert card.endswith("\n\n# Image classifier\n")
