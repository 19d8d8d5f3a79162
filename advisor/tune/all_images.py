"""All images: what a run learns from, once the advice was measured on a sample of them."""

import time
from collections.abc import Mapping
from dataclasses import replace

from advisor.advise import Prepared
from advisor.tune.run_dir.directory import RunDir
from advisor.types.profile import Profile
from strategies.data.dataset import Dataset, extend, read_rest
from strategies.data.sampling import Remainder

PASS_SHARES = {"train": 0.2, "val": 0.03, "test": 0.07}
"""In a run with a time limit, one forward pass over all images of a split may take at most this
share of the time left; the split is a sample if it takes longer. Fine-tuning begins with such a
pass over train, and every trial and the test end with one over the others. A train split that
validation and test are drawn from includes these."""
AMPLE_SHARE = 0.5
"""A run with a number of trials must be reproducible. It takes all images, whatever their pass
takes, unless that is more than this share of the time left."""
READING_SHARE = 0.3
"""Reading the images stops after this share of the time left."""
_RECORD = "n_added"


def learn_from_all(
    folder: RunDir, prepared: Prepared, profile: Profile, *, by_time: bool
) -> Prepared:
    """Add the images that the advice was not measured on, as many as the time allows.

    What was added is written to ``run.json``. A resumed run adds the same images.

    Parameters
    ----------
    prepared
        The sample, with the names of the other images.
    profile
        What was measured on the sample.
    by_time
        Whether time is what limits the run, and not a number of trials.

    Returns
    -------
    The same with more images; `Prepared.measured` is the sample.
    """
    sample, ctx = prepared.dataset, prepared.ctx
    counts = sample.remainder.counts
    if not counts:
        return prepared
    record, left_s = folder.settings(), ctx.seconds_left()
    known: Mapping[str, int] | None = record.get(_RECORD)
    wanted = counts if known is None else known
    s_per_image = profile.ms_per_image / 1000
    pass_s = s_per_image * (_n_images(sample) + sum(counts.values()))
    if known is None and (by_time or pass_s > AMPLE_SHARE * left_s):
        wanted = affordable(sample, left_s, s_per_image)
    stop_s = time.monotonic() + READING_SHARE * left_s
    images, tried = read_rest(
        sample,
        wanted,
        ctx.n_workers,
        ctx.cache,
        ctx.reporter.on_progress,
        lambda: known is None and time.monotonic() > stop_s,
    )
    if known is None:
        folder.write("run.json", {**record, _RECORD: tried})
    n_left = sum(counts.values()) - sum(tried.values())
    if not any(tried.values()):
        ctx.reporter.on_note(f"Learning from the sample alone: {_no_time_for(n_left)}")
        return replace(prepared, dataset=replace(sample, remainder=Remainder()))
    whole = extend(sample, images)
    splits = f"{len(whole.train):,} train and {len(whole.val):,} validation images"
    rest = _no_time_for(n_left) if n_left else "the advice was measured on a sample of them."
    ctx.reporter.on_note(f"Learning from {splits}: {rest}")
    unread = sum(tried.values()) - sum(map(len, images.values()))
    if unread:
        ctx.reporter.on_note(f"{unread:,} of these images cannot be read and were left out.")
    return replace(prepared, dataset=whole, measured=replace(sample, remainder=Remainder()))


def affordable(sample: Dataset, left_s: float, s_per_image: float) -> dict[str, int]:
    """Return how many images to add to every listed split, given the seconds for one image."""
    n_read = {
        "train": len(sample.train),
        "val": len(sample.val),
        "test": len(sample.test or ()),
    }
    for name in ("val", "test"):
        if name not in sample.listed:
            n_read["train"] += n_read[name]
    return {
        name: int(min(n, max(0.0, PASS_SHARES[name] * left_s / s_per_image - n_read[name])))
        for name, n in sample.remainder.counts.items()
    }


def _n_images(dataset: Dataset) -> int:
    return len(dataset.fit_split) + len(dataset.test or ())


def _no_time_for(n_left: int) -> str:
    return f"there is no time for the other {n_left:,}. Give more --time."
