"""The time that a recommended fit may take, and rankings before the advice is complete."""

import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advisor.advise import Prepared, _limit_s, advise, advise_on
from advisor.types.advice import Recommendation
from advisor.types.options import Options
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone


@pytest.mark.parametrize(
    ("time_s", "reserve_s", "expected"),
    [(None, None, math.inf), (60.0, None, 60.0), (None, 20.0, 80.0), (60.0, 20.0, 60.0)],
)
def test_a_fit_must_end_within_its_time_and_before_the_deadline_less_the_reserve(
    ctx: RunContext, time_s: float | None, reserve_s: float | None, expected: float
) -> None:
    limited = ctx.with_deadline(time.monotonic() + 100.0)
    assert _limit_s(time_s, reserve_s, limited) == pytest.approx(expected, abs=1.0)


def test_a_ranking_is_passed_on_as_soon_as_it_is_known(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    seen: list[tuple[Recommendation, ...]] = []

    def on_ranking(ranking: tuple[Recommendation, ...]) -> None:
        happened.append("ranking")
        seen.append(ranking)

    module = sys.modules["advisor.advise"]
    check = module.check
    monkeypatch.setattr(module, "check", lambda *a: happened.append("findings") or check(*a))
    options = Options(device="cpu", on_ranking=on_ranking)
    advice = advise_on(Prepared(small_dataset, backbone, (), (), options, ctx))
    assert happened == ["ranking", "findings"]
    assert seen[-1] == advice.recommendations


def test_images_that_are_all_the_same_have_void_advice(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    advice = advise(tmp_path / "data", Options(device="cpu", input_px=64, cache_dir=tmp_path))
    assert advice.void is not None
    assert advice.void.code in ("TL003", "TL201")
    assert advice.profile.curve is None
