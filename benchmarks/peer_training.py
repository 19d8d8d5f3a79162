"""Fine-tuning as users of timm, fastai or AutoGluon write it; run by `peers.py` and `tuning.py`.

Reads a JSON file (images, weights, seconds, seed), fine-tunes, evaluates on test, and prints one
line of JSON. It imports nothing of this project, so that it runs in an environment without it.

Run:      python benchmarks/peer_training.py SPEC.json
Cost:     the seconds of the file, and imports and evaluation.
Expected: a line with accuracy, n_test, seconds and hyperparameters.
"""

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

BATCH, TIMED = 32, 3
FEWEST = 11
"""Minimum of steps: a tenth of them are warm-up, and ``OneCycleLR`` needs more than one."""
File = tuple[str, int]
"""An image's path and label; a list of both when read from JSON."""
Result = tuple[NDArray[np.bool_], float, dict[str, float]]
"""Which test images were classified correctly, seconds of training, and hyperparameters."""


class Spec(TypedDict):
    """Specification of a training run, as `peers.py` writes it."""

    how: str
    lr: float
    weights: str
    train: list[File]
    val: list[File]
    test: list[File]
    n_classes: int
    px: int
    seconds: float
    seed: int


class Transform(Protocol):
    """A function from image to tensor."""

    def __call__(self, image: Image.Image, /) -> Tensor:
        """Return the image as a tensor, (channels, rows, columns)."""


class ImageInputs(Dataset[tuple[Tensor, int]]):
    """Image files with a timm transform."""

    def __init__(self, files: Sequence[File], transform: Transform) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        path, label = self.files[i]
        return self.transform(Image.open(path).convert("RGB")), label


def with_timm(spec: Spec) -> Result:
    """Fine-tune all layers with AdamW, warm-up, cosine schedule and timm's augmentation."""
    net = timm.create_model(
        f"local-dir:{spec['weights']}", pretrained=True, num_classes=spec["n_classes"]
    )
    config = resolve_model_data_config(net)
    train = ImageInputs(
        spec["train"], create_transform(**config, is_training=True, auto_augment=None)
    )
    test = ImageInputs(spec["test"], create_transform(**config, is_training=False))
    size = min(BATCH, len(train))
    start = time.monotonic()
    optimizer = torch.optim.AdamW(net.parameters(), lr=spec["lr"], weight_decay=0.05)
    net.train()
    timing = (batch for _ in range(TIMED + 1) for batch in DataLoader(train, size, shuffle=True))
    for (images, labels), step in zip(timing, range(TIMED + 1), strict=False):
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.zero_grad()
        if step == 0:  # the first step is slower: it allocates memory
            begun = time.monotonic()
    per_step = (time.monotonic() - begun) / TIMED
    steps = max(FEWEST, int(spec["seconds"] / per_step))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, spec["lr"], steps, pct_start=0.1, anneal_strategy="cos", cycle_momentum=False
    )
    done = 0
    while done < steps:
        for images, labels in DataLoader(train, size, shuffle=True, drop_last=True):
            torch.nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            done += 1
            if done == steps:
                break
    seconds = time.monotonic() - start
    net.eval()
    with torch.inference_mode():
        right = [(net(x).argmax(1) == y).numpy() for x, y in DataLoader(test, 64)]
    return np.concatenate(right), seconds, {"steps": steps, "lr": spec["lr"]}


def with_fastai(spec: Spec) -> Result:
    """Fine-tune with fastai's `vision_learner`, its augmentation and default learning rate."""
    from fastai.vision.all import (
        CategoryBlock,
        DataBlock,
        ImageBlock,
        IndexSplitter,
        Resize,
        aug_transforms,
        vision_learner,
    )

    files = spec["train"]
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=list(range(spec["n_classes"])))),
        get_x=lambda f: f[0],
        get_y=lambda f: f[1],
        # fastai requires a validation split; nothing is selected on it.
        splitter=IndexSplitter(list(range(len(files), len(files) + 2))),
        item_tfms=Resize(round(spec["px"] / 0.875)),
        batch_tfms=aug_transforms(size=spec["px"]),
    )
    loaders = block.dataloaders([*files, *files[:2]], bs=min(BATCH, len(files)), num_workers=0)
    arch = f"local-dir:{spec['weights']}"
    start = time.monotonic()
    learner = vision_learner(loaders, arch, n_out=spec["n_classes"])
    epochs = max(1, int(spec["seconds"] / seconds_per_epoch(learner)) - 1)
    learner = vision_learner(loaders, arch, n_out=spec["n_classes"])
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
    seconds = time.monotonic() - start
    test = learner.dls.test_dl(spec["test"], with_labels=True, num_workers=0)
    with learner.no_bar():
        scores, labels = learner.get_preds(dl=test)
    return (scores.argmax(1) == labels).numpy(), seconds, {"epochs": epochs}


def with_autogluon(spec: Spec) -> Result:
    """Fit AutoGluon's `MultiModalPredictor` with default settings; it selects on validation."""
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor
    from safetensors.torch import load_file

    weights = Path(spec["weights"])
    tensors = load_file(weights / "model.safetensors")
    config = json.loads((weights / "config.json").read_text())
    known = timm.get_pretrained_cfg(config["architecture"])
    assert known is not None
    name = str(known.classifier)
    body = {k: v for k, v in tensors.items() if not k.startswith(name)}
    torch.save(body, weights / "pytorch_model.bin")  # the file that AutoGluon reads

    def frame(files: Sequence[File]) -> pd.DataFrame:
        return pd.DataFrame(files, columns=["image", "label"])

    val = {tuple(f) for f in spec["val"]}
    train = frame([f for f in spec["train"] if tuple(f) not in val])
    hyperparameters = {
        "model.names": ["timm_image"],
        "model.timm_image.checkpoint_name": str(weights),
        "model.timm_image.image_size": spec["px"],
        "env.num_gpus": 0,
        "env.num_workers": 0,
        "env.num_workers_inference": 0,
    }
    start = time.monotonic()
    predictor = MultiModalPredictor(label="label", path=str(weights / "predictor"), verbosity=0)
    predictor.fit(
        train,
        tuning_data=frame(spec["val"]),
        time_limit=spec["seconds"],
        hyperparameters=hyperparameters,
        seed=spec["seed"],
    )
    seconds = time.monotonic() - start
    test = frame(spec["test"])
    return predictor.predict(test).to_numpy() == test["label"].to_numpy(), seconds, {}


def seconds_per_epoch(learner: Any) -> float:
    """Estimate the seconds of an epoch from some steps of the whole network, without the first.

    The learner cannot be used afterwards.
    """
    learner.model.train()
    batches = (batch for _ in range(TIMED + 1) for batch in learner.dls.train)
    for (images, labels), step in zip(batches, range(TIMED + 1), strict=False):
        learner.loss_func(learner.model(images), labels).backward()
        if step == 0:
            start = time.monotonic()
    n_batches: int = len(learner.dls.train)
    return (time.monotonic() - start) / TIMED * n_batches


def main(argv: Sequence[str]) -> None:
    """Train and evaluate on test; the only argument is the path of the specification."""
    spec: Spec = json.loads(Path(argv[0]).read_text())
    torch.manual_seed(spec["seed"])
    np.random.seed(spec["seed"])  # noqa: NPY002 (fastai uses the global generator)
    random.seed(spec["seed"])
    peers = {"timm": with_timm, "fastai": with_fastai, "autogluon": with_autogluon}
    right, seconds, used = peers[spec["how"]](spec)
    row = {"accuracy": float(right.mean()), "n_test": len(right), "seconds": round(seconds, 2)}
    print(json.dumps(row | {"hyperparameters": used}))


if __name__ == "__main__":
    main(sys.argv[1:])
