"""How well one labelling predicts another: pure (source predictions, labels) -> nats."""

import numpy as np
from numpy.typing import NDArray

from strategies.core.metrics import Labels, Scores


def leep(probabilities: Scores, labels: Labels) -> float:
    """Log expected empirical prediction: what the old head's probabilities say of the new labels.

    Mean log-likelihood in nats of the labels under the classifier that passes the old head's
    probabilities through the empirical P(label | old class): at most 0, which is reached when
    every old class is given to one label alone. Comparable between networks on one task, not
    between tasks. Optimistic when there are few pictures for the old classes in use.

    Parameters
    ----------
    probabilities
        The old head's, shape (n, old classes), rows sum to 1.
    labels
        Shape (n,).

    References
    ----------
    C. V. Nguyen et al., LEEP: a new measure to evaluate transferability of learned
    representations, ICML 2020.
    """
    return float(leep_terms(probabilities, labels).mean())


def leep_terms(probabilities: Scores, labels: Labels) -> NDArray[np.float64]:
    """Return every picture's log-likelihood, whose mean is LEEP, shape (n,)."""
    _require_rows(len(probabilities), labels)
    label_of_row, n_labels = _renumber(labels)
    joint = np.zeros((n_labels, probabilities.shape[1]))
    np.add.at(joint, label_of_row, probabilities)
    conditional = joint / np.maximum(joint.sum(axis=0), np.finfo(float).tiny)
    likelihood = np.einsum("nz,nz->n", probabilities, conditional[label_of_row])
    terms: NDArray[np.float64] = np.log(likelihood)
    return terms


def nce(source_labels: Labels, labels: Labels) -> float:
    """Negative conditional entropy of the labels, given what the old head called the pictures.

    In nats: at most 0, which is reached when the old class determines the label; at least minus
    the entropy of the labels. Comparable between networks on one task, not between tasks.

    Parameters
    ----------
    source_labels, labels
        Old class and label of every picture, (n,) each.

    References
    ----------
    A. T. Tran, C. V. Nguyen and T. Hassner, Transferability and hardness of supervised
    classification tasks, ICCV 2019.
    """
    return float(nce_terms(source_labels, labels).mean())


def nce_terms(source_labels: Labels, labels: Labels) -> NDArray[np.float64]:
    """Return every picture's log P(label | old class), whose mean is NCE, shape (n,)."""
    _require_rows(len(source_labels), labels)
    row, n_labels = _renumber(labels)
    column, n_sources = _renumber(source_labels)
    counts = np.zeros((n_labels, n_sources))
    np.add.at(counts, (row, column), 1)
    terms: NDArray[np.float64] = np.log(counts[row, column] / counts.sum(axis=0)[column])
    return terms


def _renumber(labels: Labels) -> tuple[Labels, int]:
    names, numbers = np.unique(labels, return_inverse=True)
    return numbers, len(names)


def _require_rows(n: int, labels: Labels) -> None:
    if n != len(labels) or n == 0:
        raise ValueError(f"need as many predictions as labels, at least one: {n}, {len(labels)}")
