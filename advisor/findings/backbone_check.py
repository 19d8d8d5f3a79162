"""Compare a doubtful backbone with the embedded one by linear probes on the same images."""

from advisor.decide.chance import is_at_chance
from advisor.decide.negative_transfer import better_earlier_depth
from advisor.decide.priors import Priors
from advisor.measure.backbone_comparison import compare_backbones
from advisor.measure.profile import sample
from advisor.types.profile import AlternativeBackbone, Profile
from strategies.core.context import RunContext
from strategies.core.metrics import Interval
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.catalogue import DEFAULT_BACKBONE

MAX_COMPARED = 500
"""Both are probed on at most about this many images: enough to see that a backbone does harm."""


def in_doubt(profile: Profile, priors: Priors) -> bool:
    """Return whether pretraining gains less than the prior mean, or the last features do harm.

    This only decides whether to compare, so it is sensitive. A finding needs another backbone that
    is clearly better.
    """
    gain, prior = profile.transfer_gain, priors.evidence["control"].mean
    little = gain is not None and (gain.low <= 0 or gain.mid < prior)
    return little or is_at_chance(profile) or better_earlier_depth(profile) is not None


def probe_alternative(
    profile: Profile, dataset: Dataset, backbone: Backbone, priors: Priors, ctx: RunContext
) -> AlternativeBackbone | None:
    """Probe the embedded backbone on the same images if the backbone in use is in doubt.

    Only a measurement on the same images can distinguish a harmful backbone from images for which
    no pretraining helps: on the latter, the embedded backbone is no better.
    """
    if backbone.name == DEFAULT_BACKBONE or not in_doubt(profile, priors):
        return None
    embedded = load_backbone(DEFAULT_BACKBONE, input_px=backbone.input_px)
    images = sample(dataset.fit_split, ctx.seed, MAX_COMPARED)
    scores = compare_backbones((backbone, embedded), images, dataset.n_classes, ctx)
    own, other = sorted(scores, key=lambda s: s.name == embedded.name)
    if own.behind_best is not None:
        lead = own.behind_best
    else:
        behind = other.behind_best
        assert behind is not None
        lead = Interval(-behind.high, -behind.mid, -behind.low)
    return AlternativeBackbone(embedded.name, other.accuracy, lead)
