"""Whether it is the backbone's fault: the embedded one, probed on the same pictures."""

from dataclasses import replace

from advisor.decide.negative_transfer import better_depth, says_nothing
from advisor.decide.priors import Priors
from advisor.measure.backbone_comparison import compare_backbones
from advisor.measure.profile import sample
from advisor.types.profile import Profile, Rival
from strategies.core.context import RunContext
from strategies.core.metrics import Interval
from strategies.data.dataset import ImageTask
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.catalogue import DEFAULT_BACKBONE

COMPARED = 500
"""On at most about this many pictures: a harmful backbone loses by more than these can hide."""


def in_doubt(profile: Profile, priors: Priors) -> bool:
    """Whether the pretrained weights bring less than is usual, or the last of them do harm.

    Doubt is no warning, so it comes early: what is warned of is another backbone's clear lead.
    """
    gain, usual = profile.transfer_gain, priors.evidence["control"].mean
    little = gain is not None and (gain.low <= 0 or gain.mid < usual)
    return little or says_nothing(profile) or better_depth(profile) is not None


def with_rival(
    profile: Profile, task: ImageTask, backbone: Backbone, priors: Priors, ctx: RunContext
) -> Profile:
    """Probe the embedded backbone too where another one is in doubt.

    Only a measurement on the same pictures can tell a harmful backbone from pictures that no
    pretraining helps with: on the latter, the embedded one does no better.
    """
    if backbone.name == DEFAULT_BACKBONE or not in_doubt(profile, priors):
        return profile
    embedded = load_backbone(DEFAULT_BACKBONE, input_px=backbone.input_px)
    pictures = sample(task.fit_split, task.n_classes, ctx.seed, COMPARED)
    scores = compare_backbones((backbone, embedded), pictures, task.n_classes, ctx)
    own, other = sorted(scores, key=lambda s: s.name == embedded.name)
    ahead, behind = other.behind_best, own.behind_best
    if behind is not None:
        lead = behind
    else:
        assert ahead is not None
        lead = Interval(-ahead.high, -ahead.mid, -ahead.low)
    return replace(profile, rival=Rival(embedded.name, other.accuracy, lead))
