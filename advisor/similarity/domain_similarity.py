"""Domain similarity of a dataset to ImageNet: one ruler for all backbones.

The embedded network's BatchNorm inputs are compared with those on ImageNet images
(`advisor.similarity.bn_shift`), at one input size (`strategies.models.domain_shift`).
`advisor.similarity.calibration` maps the shift to a similarity in [0, 1].
"""

import numpy as np

from advisor.similarity.bn_shift import shift_intervals
from advisor.similarity.calibration import calibration
from advisor.similarity.reference import shipped_reference
from advisor.types.similarity import DomainSimilarity
from strategies.models.domain_shift import SHIFT_PX, ShiftSample, shift_network


def measure_similarity(sample: ShiftSample, seed: int) -> DomainSimilarity:
    """Measure the similarity of a dataset to ImageNet.

    Parameters
    ----------
    sample
        Images and their moments, from `measure_moments`.
    seed
        Seed of the bootstrap.
    """
    reference = shipped_reference(shift_network())
    assert reference is not None
    source = reference.source(SHIFT_PX)
    rng = np.random.default_rng(seed)
    shift = shift_intervals(sample.moments, sample.labels, source, 0, rng)[0]
    scale = calibration()
    return DomainSimilarity(
        score=scale.interval(shift),
        shift_nats=shift,
        reference=reference.name,
        n_images=len(sample.labels),
        between=scale.between(shift.mid),
    )
