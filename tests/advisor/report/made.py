"""Hand-made advice, galleries and outcomes, for tests of the reports."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from advisor.decide.priors import load_priors
from advisor.decide.recommend import frontier_of, recommend
from advisor.report.gallery import Gallery, Point, images_named
from advisor.report.maps.mistakes import Explained, Explanations, NearImage
from advisor.types.advice import Advice, Choice, Finding
from advisor.types.outcome import ClassGain, Outcome, TransferGain, TrialRecord
from advisor.types.profile import LearningCurve, Profile
from strategies.core.metrics import CalibrationBin, Evaluation, Interval, Mistake, proportion
from strategies.data.image import Skipped
from tests.advisor.profiles import inputs_of, probe, profile_of, with_sizes

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "שלום עולם",
    "مرحبا",
    "🐈‍⬛ cats & dogs",
    "a name " + "that goes on " * 12,
    "</script><b>bold",
    "{{ 7 * 7 }} ${x} `id`",
)
HOSTILE_FILE = 'data/cats/"><img src=x onerror=alert(1)>.png'


def full_profile(classes: Sequence[str], n_per_class: int = 40) -> Profile:
    """Return a profile with all measurements."""
    accuracy = Interval(0.8, 0.85, 0.9)
    return profile_of(
        n_classes=len(classes),
        n_per_class=n_per_class,
        n_by_class=dict.fromkeys(classes, n_per_class),
        random_probes=tuple(probe(d, "squared_hinge", 0.4 + 0.02 * d) for d in (1, 2, 3)),
        curve=LearningCurve(
            ((5.0, proportion(0.7, 100)), (20.0, proportion(0.8, 100)), (40.0, accuracy)),
            ((80.0, proportion(0.9, 60)), (160.0, proportion(0.92, 40))),
        ),
        knn=proportion(0.81, 400),
        transfer_gain=Interval(0.2, 0.3, 0.4),
        pixel_probe=proportion(0.3, 400),
        transferability={"LogME": Interval(0.2, 0.3, 0.4)},
    )


def made_advice(profile: Profile, **changes: Any) -> Advice:
    """Return the advice that `recommend` gives for a profile."""
    inputs, priors = with_sizes(inputs_of(profile)), load_priors()
    decision = recommend(inputs, priors)
    base = Advice(
        dataset="made",
        data=Path("data"),
        recommendations=decision.recommendations,
        rejections=decision.rejections,
        quadrant=decision.quadrant,
        profile=profile,
        findings=(),
        quarantine=(),
        choices=(Choice("backbone", profile.backbone, "embedded default; pin with --backbone"),),
        split="one folder per class; test and validation cut at random by class and duplicates "
        "(seed 0)",
        n_test=100,
        seed=0,
        seconds=12.5,
        command="tl-advise data --seed 0",
        frontier=frontier_of(decision.options, inputs, priors, "balanced"),
    )
    return replace(base, **changes)


def hostile_advice() -> Advice:
    """Return advice whose names and paths are injection attempts or hard to display."""
    finding = Finding(
        "TL003",
        "issue",
        "1 image under <b>two</b> labels",
        "One of the two labels is wrong: <script>alert(1)</script>",
        "Decide on one.",
        (f"{HOSTILE_FILE} ({HOSTILE[0]}) = data/b.png ({HOSTILE[1]})", "no image here"),
    )
    torn = Skipped(Path('data/torn"><b>.png'), "<i>cut short</i>")
    return made_advice(
        full_profile(HOSTILE),
        dataset="<script>alert(1)</script>",
        findings=(finding,) * 2,
        quarantine=(torn,) * 3,
    )


def thumb(seed: int, side: int = 64) -> bytes:
    """Return a small WebP image of coloured noise."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(40, 215, 3)
    pixels = (colour + rng.normal(0, 25, (side, side, 3))).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", quality=60)
    return stream.getvalue()


def made_gallery(advice: Advice, n_points: int = 120, mistakes: Sequence[Mistake] = ()) -> Gallery:
    """Return a gallery with `n_points` points, the first with a hostile file name."""
    rng = np.random.default_rng(0)
    classes = list(advice.profile.n_by_class)
    points = tuple(
        Point(
            HOSTILE_FILE if i == 0 else f"data/{i}.png",
            classes[i % len(classes)],
            classes[i % len(classes)] if i % 7 else classes[0],
            float(rng.uniform()),
            float(rng.uniform()),
        )
        for i in range(n_points)
    )
    files = [p.path for p in points] + ["data/b.png"] + [m.path for m in mistakes]
    thumbs = {path: thumb(i) for i, path in enumerate(files)}
    named = images_named(advice.findings, files)
    explained = made_explanations(mistakes, [p.path for p in points[:9]], classes)
    thumbs |= explained.thumbs
    return Gallery(points, 2, advice.profile.n, thumbs, named, explained)


def made_explanations(
    mistakes: Sequence[Mistake], train: Sequence[str], classes: Sequence[str]
) -> Explanations:
    """Return explanations of all mistakes but the last."""
    near = tuple(NearImage(path, classes[i % len(classes)], 0.9) for i, path in enumerate(train))
    by_path = {
        m.path: Explained(thumb(i), near[i % 7 : i % 7 + 3]) for i, m in enumerate(mistakes[:-1])
    }
    if not by_path:
        return Explanations()
    thumbs = {path: thumb(i) for i, path in enumerate((*by_path, *train))}
    return Explanations(by_path, thumbs, "CAM", ("Maps of <b>all but one</b>.",))


def made_outcome(advice: Advice, n_trials: int = 12) -> Outcome:
    """Return a run of some trials, evaluated on test."""
    rng = np.random.default_rng(1)
    classes = tuple(advice.profile.n_by_class)
    trials = [TrialRecord(0, "linear_probe", {"strength": 1e-4}, proportion(0.85, 80), 3.0, None)]
    for number in range(1, n_trials):
        lr = float(10 ** rng.uniform(-5, -2))
        scored = number % 5 != 4
        trials.append(
            TrialRecord(
                number,
                "full_fine_tune",
                {"lr": lr, "steps": int(rng.integers(50, 400)), "batch_norm": "frozen"},
                proportion(0.8 + 0.02 * float(np.log10(lr) + 5), 80) if scored else None,
                40.0,
                None if scored else "pruned: <b>worse</b> than the median",
                pruned=not scored,
            )
        )
    return Outcome(
        advice,
        tuple(trials),
        trials[1],
        made_test(classes),
        False,
        Path("runs/made"),
        321.0,
        advice.profile.n_train,
        TransferGain(
            "random weights",
            Interval(0.1, 0.2, 0.3),
            "positive",
            100,
            tuple(ClassGain(c, 10, Interval(-0.1, 0.1, 0.3)) for c in classes),
        ),
    )


def made_test(classes: tuple[str, ...], n: int = 10) -> Evaluation:
    """Return an evaluation in which two images of every class are predicted as the next one."""
    size = len(classes)
    table = np.diag(np.full(size, n - 2)) + 2 * np.roll(np.eye(size, dtype=int), 1, axis=1)
    mistakes = tuple(
        Mistake(f"test/{i}-{k}.png", classes[i], classes[(i + 1) % size], 0.9)
        for i in range(min(size, 6))
        for k in range(2)
    )
    right = proportion((n - 2) / n, n)
    bins = tuple(CalibrationBin(p, proportion(p - 0.05, 20), 20) for p in (0.6, 0.8, 0.95))
    return Evaluation(
        proportion((n - 2) / n, n * size),
        proportion(0.95, n * size),
        (n - 2) / n,
        0.04,
        n * size,
        classes,
        (right,) * size,
        tuple(tuple(row) for row in table.tolist()),
        bins,
        mistakes,
    )
