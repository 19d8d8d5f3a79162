"""Advice for a fit to more images than the advice was measured on."""

from dataclasses import replace

from advisor.decide.candidates import make_candidates
from advisor.decide.cost import fit_seconds
from advisor.decide.priors import Priors
from advisor.types.advice import Advice, Recommendation
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone


def for_more_images(
    advice: Advice,
    dataset: Dataset,
    backbone: Backbone,
    priors: Priors,
    ctx: RunContext | None = None,
) -> Advice:
    """Return an advice with the hyperparameters, costs and times of fits to a larger dataset.

    What was measured stays, and so do the predicted accuracies: they are those with the images of
    the sample, and rather too low with more.

    Parameters
    ----------
    dataset
        The images that will be fitted to, of which the advice measured a sample.
    """
    n_train, n_val = len(dataset.train), len(dataset.val)
    profile = replace(advice.profile, n=n_train + n_val, n_train=n_train, n_val=n_val)
    candidates = {
        (c.name, c.input_px or profile.input_px): c
        for c in make_candidates(profile, dataset, backbone, ctx)
    }

    def scaled(r: Recommendation) -> Recommendation:
        candidate = candidates[r.strategy, r.input_px]
        return replace(
            r,
            hyperparameters=candidate.strategy.hyperparameters(),
            image_passes=candidate.image_passes,
            peak_bytes=candidate.peak_bytes,
            seconds=fit_seconds(candidate, profile, priors),
        )

    frontier = advice.frontier
    if frontier is not None:
        frontier = replace(frontier, options=tuple(map(scaled, frontier.options)))
    ranked = tuple(map(scaled, advice.recommendations))
    return replace(advice, profile=profile, recommendations=ranked, frontier=frontier)
