"""Data findings: each is reported where its cause is present, and only there."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from advisor.findings.data import check_data
from advisor.findings.rule import VOID_CONTRADICTIONS
from advisor.findings.statistics import (
    predicts_label,
    quantile_bins,
    suspect_labels,
    two_sample_test,
)
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import Finding
from strategies.data.dataset import Dataset
from strategies.data.image import ImageStats, LabelledImage, Leak, Pair, Skipped, Split, shown

CODES = [f"TL{number:03d}" for number in range(1, 20)]
WITHOUT_IMAGES = ("TL006", "TL007", "TL008", "TL014", "TL015", "TL016")
"""Codes of findings about classes or the whole dataset."""
PLAIN = ImageStats(
    "JPEG",
    10_000,
    is_grey=False,
    contrast=200,
    thumb=bytes(1024),
    highlights=230,
    shadows=10,
    clipped_share=0.0,
    sharpness=1000.0,
)


def image(i: int, label: int, n_bytes: int | None = None, **changes: object) -> LabelledImage:
    rng = np.random.default_rng(i)
    stats = replace(PLAIN, n_bytes=n_bytes or int(rng.integers(5_000, 20_000)))
    made = LabelledImage(Path(f"d/{label}/{i}.jpg"), label, str(i), 300, 224, stats=stats)
    return replace(made, **changes)  # type: ignore[arg-type]


def change_stats(split: Split, **changes: object) -> Split:
    inspected = ((p, p.stats) for p in split if p.stats is not None)
    return tuple(replace(p, stats=replace(stats, **changes)) for p, stats in inspected)  # type: ignore[arg-type]


def a_dataset(n: int = 60, **changes: object) -> Dataset:
    """Make a dataset without findings."""
    train = tuple(image(i, i % 2) for i in range(n))
    dataset = Dataset("d", Path("d"), ("cat", "dog"), train, (), None, "one folder per class")
    return replace(dataset, **changes)  # type: ignore[arg-type]


def scores(labels: list[int], wrong: int = 0) -> np.ndarray:
    """Make scores of a confident classifier that disagrees with the first `wrong` labels."""
    given = np.array(labels)
    predicted = np.where(np.arange(len(given)) < wrong, 1 - given, given)
    return np.where(np.eye(2, dtype=bool)[predicted], 3.0, -3.0)


def blobs(n: int, shift: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, 12))


def evidence_without_findings(dataset: Dataset) -> ProbeEvidence:
    split = dataset.fit_split
    return ProbeEvidence(
        input_px=224,
        images=split,
        scores=scores([p.label for p in split]),
        train_features=blobs(100, 0.0, 0),
        test_features=blobs(80, 0.0, 1),
    )


def pair(a: LabelledImage, b: LabelledImage, *, exact: bool, similarity: float = 1.0) -> Pair:
    return Pair(a, b, exact, similarity)


def with_one(**changes: object) -> Dataset:
    """Make a dataset whose first image has other statistics."""
    train = a_dataset().train
    return a_dataset(train=change_stats(train[:1], **changes) + train[1:])


DATASET = a_dataset()
FIRST, SECOND, THIRD = DATASET.train[0], DATASET.train[1], DATASET.train[2]
LEAK = Leak("test", "train", 100, 3, 2, ((Path("a"), Path("b")),))

CAUSES: dict[str, tuple[Dataset, dict[str, object]]] = {
    "TL001": (replace(DATASET, skipped=(Skipped(Path("x\n.jpg"), "empty file"),)), {}),
    "TL002": (replace(DATASET, pairs=(pair(FIRST, THIRD, exact=True),)), {}),
    "TL003": (replace(DATASET, pairs=(pair(FIRST, SECOND, exact=True),)), {}),
    "TL004": (replace(DATASET, leaks=(LEAK,)), {}),
    "TL005": (replace(DATASET, pairs=(pair(FIRST, THIRD, exact=False, similarity=0.8),)), {}),
    "TL006": (replace(DATASET, listed={"train": (600, 100)}), {}),
    "TL007": (replace(DATASET, listed={"train": (19, 19)}), {}),
    "TL008": (replace(DATASET, classes=("cat", "dog", "emu"), listed={"train": (30, 30, 30)}), {}),
    "TL009": (DATASET, {"scores": scores([p.label for p in DATASET.train], wrong=4)}),
    "TL010": (
        replace(
            DATASET, train=tuple(replace(p, width_px=32, height_px=32) for p in DATASET.train)
        ),
        {},
    ),
    "TL011": (replace(DATASET, train=change_stats(DATASET.train, is_grey=True)), {}),
    "TL012": (
        replace(
            DATASET,
            train=tuple(replace(p, width_px=900) for p in DATASET.train[:6]) + DATASET.train,
        ),
        {},
    ),
    "TL013": (
        replace(DATASET, train=DATASET.train[1:] + change_stats(DATASET.train[:1], contrast=2)),
        {},
    ),
    "TL014": (DATASET, {"test_features": blobs(80, 0.6, 1)}),
    "TL015": (
        replace(
            DATASET, train=DATASET.train[::2] + change_stats(DATASET.train[1::2], format="PNG")
        ),
        {},
    ),
    "TL016": (replace(DATASET, similar_class_names=(("Cat", "cat"),)), {}),
    "TL017": (with_one(sharpness=20.0), {}),
    "TL018": (with_one(highlights=60), {}),
    "TL019": (with_one(clipped_share=0.5, shadows=140), {}),
}


def findings(dataset: Dataset, changes: dict[str, object]) -> list[Finding]:
    evidence = replace(evidence_without_findings(dataset), **changes)  # type: ignore[arg-type]
    return list(check_data(dataset, evidence))


def test_clean_data_has_no_findings() -> None:
    assert findings(DATASET, {}) == []


@pytest.mark.parametrize("code", CODES)
def test_each_cause_gives_exactly_its_own_finding(code: str) -> None:
    dataset, changes = CAUSES[code]
    found = findings(dataset, changes)
    expected = {"TL012": ["TL012"], "TL015": ["TL015"]}.get(code, [code])
    assert [f.code for f in found] == expected
    (finding,) = found
    assert finding.title
    assert finding.detail
    assert finding.action
    assert code == "TL014" or finding.examples
    assert all(line.isprintable() for line in finding.examples)
    assert bool(finding.affected) == (code not in WITHOUT_IMAGES)
    assert finding.n_affected == len(finding.affected)
    assert len({image.path for image in finding.affected}) == finding.n_affected
    known = set(dataset.classes) | {None}
    for image in finding.affected:
        assert {image.label, image.suggested_label} <= known
        assert image.path != image.other_path
    if code not in WITHOUT_IMAGES:
        named = [shown(image.path) for image in finding.affected]
        assert all(any(name in line for name in named) for line in finding.examples)


@pytest.mark.parametrize(
    ("code", "dataset", "changes"),
    [
        ("TL002", replace(DATASET, pairs=(pair(FIRST, SECOND, exact=True),)), {}),
        ("TL003", replace(DATASET, pairs=(pair(FIRST, THIRD, exact=True),)), {}),
        ("TL003", replace(DATASET, pairs=(pair(FIRST, SECOND, exact=False, similarity=0.8),)), {}),
        (
            "TL003",
            replace(DATASET, pairs=(replace(pair(FIRST, SECOND, exact=False), mirrored=True),)),
            {},
        ),
        ("TL005", replace(DATASET, pairs=(pair(FIRST, THIRD, exact=True),)), {}),
        ("TL006", replace(DATASET, listed={"train": (500, 100)}), {}),
        ("TL007", replace(DATASET, listed={"train": (20, 20)}), {}),
        ("TL009", DATASET, {"scores": scores([p.label for p in DATASET.train], wrong=2)}),
        ("TL009", DATASET, {"scores": None}),
        (
            "TL010",
            replace(DATASET, train=tuple(replace(p, height_px=112) for p in DATASET.train)),
            {},
        ),
        ("TL010", CAUSES["TL010"][0], {"input_px": 64}),
        (
            "TL011",
            replace(
                DATASET, train=DATASET.train[2:] + change_stats(DATASET.train[:2], is_grey=True)
            ),
            {},
        ),
        ("TL012", replace(DATASET, train=(replace(FIRST, width_px=900), *DATASET.train[1:])), {}),
        ("TL013", replace(DATASET, train=change_stats(DATASET.train, contrast=8)), {}),
        ("TL014", DATASET, {"test_features": None}),
        ("TL014", DATASET, {"test_features": blobs(80, 0.02, 3)}),
        ("TL015", replace(DATASET, train=change_stats(DATASET.train, format="PNG")), {}),
        (
            "TL015",
            replace(
                DATASET, train=DATASET.train[:30] + change_stats(DATASET.train[30:], format="PNG")
            ),
            {},
        ),
        ("TL005", replace(DATASET, pairs=(Pair(FIRST, THIRD, False, 0.8, is_grouped=True),)), {}),
        ("TL017", with_one(sharpness=120.0), {}),
        ("TL017", a_dataset(train=change_stats(DATASET.train, sharpness=20.0)), {}),
        ("TL017", a_dataset(train=change_stats(DATASET.train, sharpness=math.inf)), {}),
        ("TL018", with_one(highlights=90), {}),
        ("TL018", a_dataset(train=change_stats(DATASET.train, highlights=60)), {}),
        ("TL019", with_one(clipped_share=0.5, shadows=50), {}),
        ("TL019", with_one(clipped_share=0.2, shadows=140), {}),
        (
            "TL019",
            a_dataset(train=change_stats(DATASET.train, clipped_share=0.6, shadows=140)),
            {},
        ),
    ],
)
def test_there_is_no_finding_without_its_cause(
    code: str, dataset: Dataset, changes: dict[str, object]
) -> None:
    assert code not in [f.code for f in findings(dataset, changes)]


def test_serious_and_slight_leaks_differ_in_severity() -> None:
    slight = Leak("test", "train", 1000, 0, 2, ())
    found = findings(replace(DATASET, leaks=(LEAK, slight)), {})
    assert [f.severity for f in found] == ["issue", "tip"]
    assert "5.0% of the test images also occur in train" in found[0].title


def test_leaks_and_contradictions_void_the_advice_only_in_bulk() -> None:
    def is_void(dataset: Dataset) -> bool:
        return any(f.voids_advice for f in findings(dataset, {}))

    assert is_void(replace(DATASET, leaks=(Leak("test", "train", 100, 5, 0, ()),)))
    assert is_void(replace(DATASET, leaks=(Leak("test", "train", 100, 0, 10, ()),)))
    assert not is_void(replace(DATASET, leaks=(Leak("test", "train", 100, 0, 9, ()),)))
    first, second = DATASET.train[0], replace(DATASET.train[1], label=1 - DATASET.train[0].label)
    n_pairs = math.ceil(VOID_CONTRADICTIONS * len(DATASET.fit_split) / 2)
    pairs = tuple(Pair(replace(first), replace(second), True, 1.0) for _ in range(n_pairs))
    assert is_void(replace(DATASET, pairs=pairs))
    assert not is_void(replace(DATASET, pairs=pairs[:1]))


def test_very_small_classes_are_an_issue() -> None:
    (finding,) = findings(replace(DATASET, listed={"train": (4, 19)}), {})
    assert finding.severity == "issue"
    assert finding.examples == ("cat: 4", "dog: 19")


def test_one_class_is_an_issue() -> None:
    dataset = a_dataset(classes=("cat",), train=tuple(image(i, 0) for i in range(60)))
    assert [f.code for f in check_data(dataset, ProbeEvidence(224))] == ["TL008"]
    empty = a_dataset(skipped=(Skipped(Path("d/emu"), "a class without a readable image"),))
    assert [f.code for f in check_data(empty, ProbeEvidence(224))] == ["TL001", "TL008"]


@pytest.mark.parametrize("what", ["resolution", "colour", "file size", "file format"])
def test_every_kind_of_shortcut_is_named(what: str) -> None:
    cats, dogs = DATASET.train[::2], DATASET.train[1::2]
    changed = {
        "resolution": tuple(replace(p, width_px=301) for p in dogs),
        "colour": change_stats(dogs, is_grey=True),
        "file size": tuple(image(i, 1, n_bytes=50_000 + i) for i in range(30)),
        "file format": tuple(replace(p, path=p.path.with_suffix(".png")) for p in dogs),
    }
    found = findings(replace(DATASET, train=cats + changed[what]), {})
    assert [f.code for f in found] == ["TL015"]
    assert what in found[0].title


def test_suspicious_labels_are_ranked_most_suspicious_first() -> None:
    labels = np.zeros(40, dtype=np.int64)
    logits = np.tile([5.0, 0.0], (40, 1))
    logits[[7, 3, 9]] = [[0, 9], [0, 6], [0, 1]]
    found = suspect_labels(logits, labels)
    assert found.order[:3].tolist() == [7, 3, 9]
    assert found.n_confident == 2
    assert found.likelier[7] == 1


def test_samples_of_the_same_distribution_are_not_separated() -> None:
    p_values = [
        two_sample_test(blobs(60, 0, 2 * s), blobs(90, 0, 2 * s + 1), s).p_value for s in range(40)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.2
    assert two_sample_test(blobs(60, 0, 0), blobs(90, 0.5, 1), 0).p_value < 1e-6
    assert two_sample_test(blobs(3, 0, 0), blobs(90, 9, 1), 0).p_value == 1.0


def test_the_two_sample_test_works_with_more_features_than_images() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(40, 300)), rng.normal(size=(40, 300))
    assert two_sample_test(first, second, 0).p_value > 1e-3
    assert two_sample_test(first, second + 0.3, 0).auc > 0.8


def test_unique_values_predict_no_label() -> None:
    labels = np.arange(100) % 4
    assert predicts_label(list(range(100)), labels, 0).p_value > 0.01
    assert predicts_label(labels.tolist(), labels, 0).accuracy == 1.0


def test_equal_values_share_a_bin() -> None:
    bins = quantile_bins([1.0] * 50 + [2.0] * 3 + list(range(3, 50)))
    assert len(set(bins[:50])) == 1
    assert quantile_bins([5.0] * 9) == [0] * 9


def test_every_image_of_duplicates_is_named_once_with_its_most_similar_partner() -> None:
    near = [pair(FIRST, THIRD, exact=False, similarity=0.7)]
    near += [pair(DATASET.train[4], THIRD, exact=False, similarity=0.8)]
    (found,) = findings(replace(DATASET, pairs=tuple(near)), {})
    partners = {image.path: (image.other_path, image.score) for image in found.affected}
    assert partners == {
        FIRST.path: (THIRD.path, 0.7),
        THIRD.path: (DATASET.train[4].path, 0.8),
        DATASET.train[4].path: (THIRD.path, 0.8),
    }
    assert found.affected[0].score == 0.8
    lines = (f"{DATASET.train[4].path} ~ {THIRD.path}", f"{FIRST.path} ~ {THIRD.path}")
    assert found.examples == lines
    contradiction = replace(DATASET, pairs=(pair(FIRST, SECOND, exact=True),))
    (found,) = findings(contradiction, {})
    assert [image.label for image in found.affected] == ["cat", "dog"]
    assert found.examples == (f"{FIRST.path} (cat) = {SECOND.path} (dog)",)


def test_a_suspicious_label_has_the_suggested_class_and_its_probability() -> None:
    (found,) = findings(*CAUSES["TL009"])
    assert found.n_affected == 4
    for image in found.affected:
        assert {image.label, image.suggested_label} == {"cat", "dog"}
        assert image.score == pytest.approx(1 / (1 + math.exp(-6)))


def test_all_affected_images_are_listed_and_only_some_are_examples() -> None:
    train = DATASET.train[:40] + change_stats(DATASET.train[40:], contrast=2)
    (found,) = findings(replace(DATASET, train=train), {})
    assert found.n_affected == 20
    assert len(found.examples) == 5
