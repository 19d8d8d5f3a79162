"""Negative transfer where it truly happens, and where it does not, and what the warnings say.

    python benchmarks/negative.py harm --backbone-folder FOLDER      # make a harmful backbone
    python benchmarks/negative.py warn --backbone-folder FOLDER      # three targets x ten draws
    python benchmarks/negative.py near                               # near sets x ten draws
    python benchmarks/negative.py remedies --backbone-folder FOLDER  # what the remedies reach
    python benchmarks/negative.py table                              # what was found

``harm`` trains the embedded network on random labels of spectrograms at a large learning rate: a
foreign task with nothing to learn. ``warn`` asks for advice with it on small draws of near sets,
``near`` with the embedded network itself. Rows are appended to ``negative.jsonl``; what stands
there is not run again.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from rows import HERE, Row, append_row, read_rows
from run_suite import subsample

from advisor.options import Options
from advisor.pipeline import Prepared, advise_on
from advisor.types import Finding
from strategies.core.backbone import Backbone, load_backbone
from strategies.core.catalogue import DEFAULT_BACKBONE
from strategies.core.classifier import ImageClassifier, make_network
from strategies.core.recipe import Recipe
from strategies.core.run import make_context
from strategies.core.task import ImageTask, load_task
from strategies.core.timm_format import write as write_for_timm
from strategies.core.training import train

ROWS = HERE / "negative.jsonl"
FOREIGN, N_FOREIGN = "fsdd_spec", 640
TARGETS = ("flowers5", "cats_dogs", "trash6")
NEAR = ("hymenoptera", "cats_dogs", "flowers5")
N_PER_CLASS = 40
WARNINGS = ("TL201", "TL202", "TL208", "TL209")


def harm(args: argparse.Namespace) -> None:
    """Train the embedded network on random labels of spectrograms, and save it."""
    backbone = load_backbone(input_px=args.input_px)
    task = load_task(args.data_root / FOREIGN)
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(task.train))[:N_FOREIGN]
    labels = rng.integers(task.n_classes, size=len(rows))
    shuffled = tuple(
        replace(task.train[row], label=int(label)) for row, label in zip(rows, labels, strict=True)
    )
    ctx = make_context(cache_dir=Path(args.cache_dir), seed=0)
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), task.n_classes)
        recipe = Recipe(steps=args.steps, lr=args.lr, batch_norm="trained")
        train(network, replace(task, train=shuffled, val=(), test=None), backbone, recipe, ctx)
    made = ImageClassifier(
        task.classes, backbone, (backbone.n_depths,), network, "full_fine_tune", {}
    )
    write_for_timm(made, args.backbone_folder)
    print(f"{args.backbone_folder}: {args.steps} steps at learning rate {args.lr:g}")


def ask(args: argparse.Namespace) -> None:
    """Ask for advice on every draw that has no row yet."""
    harmful = args.part == "warn"
    name = f"local-dir:{args.backbone_folder}" if harmful else DEFAULT_BACKBONE
    backbone = load_backbone(name, input_px=args.input_px)
    for target in TARGETS if harmful else NEAR:
        whole = load_task(args.data_root / target)
        for seed in range(args.seeds):
            about = {"part": args.part, "set": target, "seed": seed, "n_per_class": N_PER_CLASS}
            if any(about.items() <= row.items() for row in read_rows(args.out)):
                continue
            task = subsample(whole, N_PER_CLASS, seed).hide_test()
            row = about | asked(task, backbone, seed, args.cache_dir)
            append_row(args.out, row)
            print(row, flush=True)


def asked(task: ImageTask, backbone: Backbone, seed: int, cache_dir: Path) -> Row:
    """Return what advice says of transfer on one draw."""
    options = Options(backbone=backbone.name, input_px=backbone.input_px, pilot="off", seed=seed)
    ctx = make_context(cache_dir=cache_dir, seed=seed)
    advice = advise_on(Prepared(task, backbone, (), (), options, ctx))
    profile = advice.profile
    gain, rival = profile.transfer_gain, profile.rival
    assert gain is not None
    return {
        "warnings": [f.code for f in advice.findings if f.code in WARNINGS],
        "issues": [f.code for f in advice.findings if is_issue(f)],
        "names_backbone": any("backbone" in f.title for f in advice.findings if is_issue(f)),
        "probe": round(profile.linear_probe.accuracy.mid, 4),
        "over_random": [round(v, 4) for v in (gain.low, gain.mid, gain.high)],
        "rival_lead": None if rival is None else round(rival.lead.mid, 4),
        "risks": {r.strategy: round(r.probability, 3) for r in advice.risks},
        "seconds": round(advice.seconds, 1),
    }


def is_issue(finding: Finding) -> bool:
    """Whether a finding warns of negative transfer, not only remarks on it."""
    return finding.code in WARNINGS and finding.severity == "issue"


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["harm", "warn", "near"])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--backbone-folder", type=Path)
    parser.add_argument("--cache-dir", type=Path, default=Path(tempfile.gettempdir()) / "negative")
    parser.add_argument("--input-px", type=int, default=96)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ROWS)
    args = parser.parse_args()
    {"harm": harm, "warn": ask, "near": ask}[args.part](args)


if __name__ == "__main__":
    main()
