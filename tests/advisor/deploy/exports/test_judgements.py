"""Agreement of an export about unknown images and prediction sets."""

import json
from pathlib import Path

import numpy as np
import pytest

from advisor.deploy.export import Exported
from advisor.deploy.exports.agreement import agreement
from advisor.deploy.exports.judgements import JudgementAgreement, judgement_agreement
from strategies.models.reliability.outputs import Outputs
from strategies.models.reliability.reliability import Depths, Reliability

N = 100
SCORES = np.arange(N, dtype=np.float32)


@pytest.fixture
def reliability() -> Reliability:
    """Unknown above a score of 95; a class is in the set at a probability of at least 0.1."""
    wrong = np.linspace(0, 0.99, N, dtype=np.float32)
    return Reliability({}, Depths((1,), (4,)), SCORES, wrong, "validation")


def sure(n: int = N) -> np.ndarray:
    """Return probabilities of two classes, of which the first is the only one in the set."""
    return np.tile(np.array([[0.95, 0.05]], dtype=np.float32), (n, 1))


def compared(
    found: Outputs, own: Outputs, reliability: Reliability, label: int = 0
) -> JudgementAgreement:
    labels = np.full(len(own.probabilities), label)
    return judgement_agreement(found, own, labels, reliability)


def test_equal_outputs_agree_without_a_warning(reliability: Reliability) -> None:
    own = Outputs(sure(), SCORES)
    found = compared(own, own, reliability)
    assert found.unknown_changed == found.sets_changed == 0
    assert found.unknown is not None
    assert found.unknown.export == found.unknown.own == 0.04  # 96 to 99
    assert found.coverage is not None
    assert found.coverage.export == 1
    assert found.set_size.export == 1
    assert found.warnings() == []


def test_other_scores_and_sets_are_counted_and_warned_about(reliability: Reliability) -> None:
    own = Outputs(sure(), SCORES)
    wider = sure()
    wider[:5] = 0.5
    found = compared(Outputs(wider, SCORES + 3), own, reliability)
    assert found.unknown_changed == pytest.approx(0.03)  # 93 to 95 are above 95 now
    assert found.unknown is not None
    assert (found.unknown.export, found.unknown.own) == pytest.approx((0.07, 0.04))
    assert found.sets_changed == pytest.approx(0.05)
    assert (found.set_size.export, found.set_size.own) == pytest.approx((1.05, 1))
    first, second = found.warnings()
    assert "differ on 3.0% of the images about which is unknown, more than 2%" in first
    assert "Prediction sets differ on 5.0%" in second
    text = " ".join(found.sentences())
    assert "7.0% (tl-auto predict 4.0%); different on 3.0%" in text
    assert "mean size 1.05, that of tl-auto predict 1.00" in text


def test_changes_of_both_signs_do_not_cancel(reliability: Reliability) -> None:
    moved = SCORES.copy()
    moved[[0, 1, 2, 97, 98, 99]] = moved[[97, 98, 99, 0, 1, 2]]
    found = compared(Outputs(sure(), moved), Outputs(sure(), SCORES), reliability)
    assert found.unknown is not None
    assert found.unknown.export == found.unknown.own
    assert found.unknown_changed == pytest.approx(0.06)


def test_a_single_image_is_no_warning(reliability: Reliability) -> None:
    own = Outputs(sure(20), np.full(20, 90, np.float32))
    scores = np.full(20, 90, np.float32)
    scores[0] = 96
    one = compared(Outputs(sure(20), scores), own, reliability)
    scores[1] = 96
    two = compared(Outputs(sure(20), scores), own, reliability)
    assert one.unknown_changed == 0.05
    assert one.warnings() == []
    assert len(two.warnings()) == 1


def test_a_format_without_the_score_says_so(reliability: Reliability) -> None:
    own = Outputs(sure(), SCORES)
    found = compared(Outputs(sure(), None), own, reliability, label=-1)
    assert found.unknown is found.unknown_changed is found.coverage is None
    assert "has no unknown score" in found.sentences()[0]
    assert found.record()["unknown"] is None
    assert found.warnings() == []


def test_the_record_and_the_warnings_of_an_export_have_it(reliability: Reliability) -> None:
    own, other = Outputs(sure(), SCORES), Outputs(sure(), SCORES + 3)
    labels = np.zeros(N, dtype=int)
    plain = agreement(other.probabilities, own.probabilities, labels, "images", np.ones(N))
    judged = compared(other, own, reliability)
    result = vars(plain) | {"judgements": judged}
    done = Exported(Path("x.onnx"), "onnx", "int8", 1, type(plain)(**result), None)
    record = json.loads(json.dumps(done.record()))
    assert record["check"]["judgements"]["unknown"] == [0.07, 0.04]
    assert record["check"]["judgements"]["unknown_changed"] == 0.03
    assert any("about which is unknown" in warning for warning in record["warnings"])
    assert any("Called unknown" in sentence for sentence in done.sentences())
