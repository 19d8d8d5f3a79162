"""Whether it is the backbone's fault: the embedded one, probed on the same images."""

from dataclasses import replace

from advisor.decide.negative_transfer import better_depth, is_at_chance
from advisor.decide.priors import Priors
from advisor.measure.backbone_comparison import compare_backbones
from advisor.measure.profile import sample
from advisor.types.profile import AlternativeBackbone, Profile
from strategies.core.context import RunContext
from strategies.core.metrics import Interval
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.catalogue import DEFAULT_BACKBONE

COMPARED = 500
"""On at most about this many images: a harmful backbone loses by more than these can hide."""


def in_doubt(profile: Profile, priors: Priors) -> bool:
    """Whether the pretrained weights bring less than is usual, or the last of them do harm.

    Doubt is no warning, so it comes early: what is warned of is another backbone's clear lead.
    """
    gain, prior = profile.transfer_gain, priors.evidence["control"].mean
    little = gain is not None and (gain.low <= 0 or gain.mid < prior)
    return little or is_at_chance(profile) or better_depth(profile) is not None


def with_alternative(
    profile: Profile, dataset: Dataset, backbone: Backbone, priors: Priors, ctx: RunContext
) -> Profile:
    """Probe the embedded backbone too where another one is in doubt.

    Only a measurement on the same images can tell a harmful backbone from images that no
    pretraining helps with: on the latter, the embedded one does no better.
    """
    if backbone.name == DEFAULT_BACKBONE or not in_doubt(profile, priors):
        return profile
    embedded = load_backbone(DEFAULT_BACKBONE, input_px=backbone.input_px)
    images = sample(dataset.fit_split, dataset.n_classes, ctx.seed, COMPARED)
    scores = compare_backbones((backbone, embedded), images, dataset.n_classes, ctx)
    own, other = sorted(scores, key=lambda s: s.name == embedded.name)
    read_ahead, behind = other.behind_best, own.behind_best
    if behind is not None:
        lead = behind
    else:
        assert read_ahead is not None
        lead = Interval(-read_ahead.high, -read_ahead.mid, -read_ahead.low)
    return replace(profile, alternative=AlternativeBackbone(embedded.name, other.accuracy, lead))
