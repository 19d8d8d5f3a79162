"""A strategy that nothing knows goes through advice, run, report, JSON and resume."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from rich.console import Console

from advisor.advise import advise, prepare
from advisor.cli.finding_files import FindingFiles, advise_with_files
from advisor.report.files import PAGE_FILE
from advisor.report.from_json import read_advice
from advisor.report.markdown import advice_markdown
from advisor.report.terminal import print_advice
from advisor.report.to_json import advice_record
from advisor.tune.driver import auto
from advisor.tune.resume import resume
from advisor.types.events import Event
from advisor.types.options import Options, RunOptions
from strategies.base import GainPrior, Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset, labels_of
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, make_network, set_head
from strategies.models.features import extract_features
from strategies.registry import STRATEGIES
from strategies.training.defaults import Measurements
from tests.conftest import write_folder


@dataclass(frozen=True)
class NearestMean(Strategy):
    """Nearest class mean of the penultimate features; `scale` divides the squared distances."""

    scale: float = 1.0

    name: ClassVar[str] = "nearest_mean"
    title: ClassVar[str] = "Nearest mean"
    references: ClassVar[tuple[str, ...]] = ("T. Mensink et al., ECCV 2012",)
    trains_network: ClassVar[bool] = False
    fallback_gain: ClassVar[GainPrior] = GainPrior(-0.3, 0.5)

    @classmethod
    def search_space(cls, dataset: Dataset, backbone: Backbone) -> Mapping[str, BaseDistribution]:
        return {"scale": FloatDistribution(0.1, 10.0, log=True)}

    @classmethod
    def starting_point(cls, measured: Measurements) -> Self:
        return cls(scale=2.0)

    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        ctx.check_time()
        x = extract_features(dataset.train, backbone, ctx).pooled[-1]
        labels = labels_of(dataset.train)
        means = np.stack([x[labels == c].mean(axis=0) for c in range(dataset.n_classes)])
        depths = (backbone.n_depths,)
        with ctx.seeded():
            network = make_network(backbone, depths, dataset.n_classes)
        set_head(network, means / self.scale, -0.5 * np.square(means).sum(axis=1) / self.scale)
        return ImageClassifier(
            dataset.classes, backbone, depths, network, self.name, self.hyperparameters()
        )

    def image_passes(self, dataset: Dataset, backbone: Backbone) -> float:
        return float(len(dataset.train))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, NearestMean.name, NearestMean)  # type: ignore[arg-type]


@pytest.fixture
def options(warm_cache: Path) -> Options:
    return Options(input_px=64, cache_dir=warm_cache, device="cpu")


def test_advice_ranks_it_with_its_wide_interval_in_every_report(
    registered: None, options: Options, tmp_path: Path
) -> None:
    data = write_folder(tmp_path / "data", 12)
    page = tmp_path / "page.html"
    advice = advise_with_files(prepare(data, options), None, page, FindingFiles())
    found = next(r for r in advice.recommendations if r.strategy == NearestMean.name)
    probe = next(r for r in advice.recommendations if r.strategy == "linear_probe")
    assert advice.best is not found
    assert found.cases == 0
    assert found.hyperparameters == {"scale": 2.0}
    assert found.accuracy.high - found.accuracy.low > probe.accuracy.high - probe.accuracy.low
    assert "no cases" in " ".join(found.reasons)
    console = Console(width=200, record=True, file=io.StringIO())
    print_advice(console, advice)
    printed = console.export_text()
    unproven = [r.strategy for r in advice.recommendations if not r.cases]
    assert f"No benchmark cases: {', '.join(unproven)}." in printed
    for text in (printed, advice_markdown(advice), page.read_text()):
        plain = text.replace("\\_", "_")
        assert NearestMean.title in plain or NearestMean.name in plain
    record = json.loads(json.dumps(advice_record(advice)))
    assert read_advice(record) == advice
    forced = advise(data, replace(options, strategy=NearestMean.name))
    assert forced.best.strategy == NearestMean.name


def test_a_run_of_it_is_killed_resumed_and_leaves_a_classifier(
    registered: None, options: Options, tmp_path: Path
) -> None:
    data, out = write_folder(tmp_path / "data", 12), tmp_path / "run"
    options = replace(options, strategy=NearestMean.name)

    def die(event: Event) -> None:
        if event.kind == "ended":
            raise SystemExit

    with pytest.raises(SystemExit):
        auto(data, out, options, RunOptions(max_trials=3, control=False), on_event=die)
    outcome = resume(out)
    assert [t.strategy for t in outcome.trials] == [NearestMean.name] * 3
    assert outcome.trials[0].hyperparameters == {"scale": 2.0}
    assert len({t.hyperparameters["scale"] for t in outcome.trials}) == 3
    assert outcome.refitted
    assert outcome.test is not None
    classifier = ImageClassifier.load(out / "classifier")
    assert classifier.strategy == NearestMean.name
    assert NearestMean.title in (out / PAGE_FILE).read_text()
    assert NearestMean.name in (out / "outcome.json").read_text()
