"""Records for the golden tests: decisions, advice and runs as plain values, without wording.

``python -m tests.advisor.golden.behaviour`` writes decisions and advice again after an intended
change.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from advisor.advise import Prepared, advise_on, prepare
from advisor.decide.priors import load_priors
from advisor.decide.recommend import recommend
from advisor.types.advice import Advice, Decision
from advisor.types.options import Options, Prefer
from advisor.types.outcome import TrialRecord
from strategies.core import context
from strategies.models.catalogue import DEFAULT_BACKBONE
from tests.conftest import BENCHMARKS, write_folder

HERE = Path(__file__).parent
PREFERENCES: tuple[Prefer, ...] = ("accuracy", "cheap")
DATASETS = ("stripes", "digits", "photos")
N_PER_CLASS = 14

Record = dict[str, Any]


def golden(name: str) -> Any:
    """Read a golden file."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def decisions() -> Iterator[tuple[str, Record]]:
    """Yield the decision for every case of the benchmarks, with the current priors."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        inputs = importlib.import_module("rows").read_inputs()
    finally:
        sys.path.remove(str(BENCHMARKS))
    priors = load_priors()
    for case, known in inputs.items():
        record = decision_record(recommend(known, priors, None, "balanced"))
        for prefer in PREFERENCES:
            ranked = recommend(known, priors, None, prefer).recommendations
            record[prefer] = [r.strategy for r in ranked]
        is_embedded = case.backbone == DEFAULT_BACKBONE
        yield " ".join(map(str, case[:-1] if is_embedded else case)), record


def decision_record(decision: Decision | Advice) -> Record:
    """Return order, accuracies, hyperparameters and quadrant of a decision."""
    quadrant = decision.quadrant
    return {
        "recommended": [
            [r.strategy, *_interval(r.accuracy), dict(r.hyperparameters)]
            for r in decision.recommendations
        ],
        "rejected": sorted(r.strategy for r in decision.rejections),
        "quadrant": [quadrant.size, quadrant.domain, quadrant.rule, *quadrant.candidates],
    }


def write_dataset(name: str, folder: Path) -> Path:
    """Write class folders of small images, from scikit-learn or generated here."""
    if name == "stripes":
        return write_folder(folder, N_PER_CLASS)
    if name == "digits":
        found = load_digits()
        by_class = {str(d): found.images[found.target == d][:N_PER_CLASS] for d in range(4)}
        images = {
            k: [_coloured_digit(image, i) for i, image in enumerate(v)]
            for k, v in by_class.items()
        }
    else:
        images = {
            f"{name}{half}": list(_crops(photo[:, 320 * half : 320 * (half + 1)]))
            for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True)
            for half in (0, 1)
        }
    for label, members in images.items():
        (folder / label).mkdir(parents=True)
        for number, pixels in enumerate(members):
            Image.fromarray(np.asarray(pixels)).save(folder / label / f"{number:02d}.png")
    return folder


def _coloured_digit(digit: Any, seed: int) -> Any:
    """Enlarge a digit from 8 to 48 px, in a random colour on noise: none are near-duplicates."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(90, 25, (48, 48, 3))
    ink = np.kron(digit / 16, np.ones((6, 6)))[..., None] * rng.uniform(60, 140, 3)
    return (noise + ink).clip(0, 255).astype(np.uint8)


def _crops(photo: Any) -> Iterator[Any]:
    """Yield random crops of 64 px from a photo."""
    rng = np.random.default_rng(0)
    for _ in range(N_PER_CLASS):
        top, left = (rng.integers(side - 64) for side in photo.shape[:2])
        yield photo[top : top + 64, left : left + 64]


def prepared(folder: Path, cache: Path) -> Prepared:
    """Load a dataset with the golden advice's options: on the CPU, and only accuracy counts."""
    options = Options(
        input_px=64,
        cache_dir=cache,
        device="cpu",
        prefer="accuracy",
    )
    return prepare(folder, options)


def in_full_precision(device: torch.device) -> torch.dtype:
    """Replace `choose_precision`: always float32."""
    return torch.float32


def advice_record(advice: Advice) -> Record:
    """Return all numbers of an advice except times, and its finding codes."""
    profile = advice.profile
    statistics = profile.backbone_statistics
    return {
        **decision_record(advice),
        "n": [profile.n, profile.n_train, profile.n_val, advice.n_test, profile.n_measured],
        "similarity": _interval(profile.similarity.score),
        "shifts": [] if statistics is None else [x and x.mid for x in statistics.per_depth],
        "probes": [[p.depth, p.accuracy.mid] for p in profile.probes],
        "random_probes": [[p.depth, p.accuracy.mid] for p in profile.random_probes],
        "layer_svm": [profile.best_svm.depth, profile.best_svm.accuracy.mid],
        "transfer_gain": profile.transfer_gain and profile.transfer_gain.mid,
        "knn": profile.knn and profile.knn.mid,
        "findings": [[f.code, f.severity] for f in advice.findings],
        "quarantined": len(advice.quarantine),
        "risks": {r.strategy: r.probability for r in advice.risks},
    }


def trial_record(trial: TrialRecord) -> Record:
    """Return a trial without its seconds and without the wording of its reason."""
    return {
        "number": trial.number,
        "strategy": trial.strategy,
        "hyperparameters": json.loads(json.dumps(dict(trial.hyperparameters))),
        "val_accuracy": trial.val_accuracy and _interval(trial.val_accuracy),
        "has_reason": trial.reason is not None,
    }


def _interval(interval: Any) -> list[float]:
    return [round(value, 6) for value in asdict(interval).values()]


def write(name: str, record: object) -> None:
    """Write a golden file, one entry per line."""
    lines = json.dumps(record, separators=(",", ":"), sort_keys=True)
    text = lines.replace('},"', '},\n"').replace("},{", "},\n{")
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Write decisions and advice; the test of the run writes its own if `WRITE_GOLDEN` is set."""
    import tempfile

    write("decisions", dict(decisions()))
    context.choose_precision = in_full_precision
    found = {}
    for name in DATASETS:
        with tempfile.TemporaryDirectory() as root:
            folder = write_dataset(name, Path(root) / "data" / name)
            p = prepared(folder, Path(root) / "cache")
            found[name] = advice_record(advise_on(p))
    write("advice", found)


if __name__ == "__main__":
    main()
