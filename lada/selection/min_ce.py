"""FedMKT's dual minimum-cross-entropy selection: from whom a party learns on which shared text.

A rule turns cross-entropies into weights of sources: column 0 is the party's own frozen snapshot, the others
are its partners in order. A row of zeros leaves the text out of knowledge distillation (not out of
cross-entropy). Cross-entropies are compared as they are: FedMKT's reward exp(-c), taken in bfloat16, has a
step of 2^-8 near 1, so that ties are frequent and all of them go to the first source (baselines, section
4d3).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rule = Literal["greater", "weighted_mean", "paper"]
Values = NDArray[np.float64]


def source_weights(own: Values, others: Values, rule: Rule) -> Values:
    """Weights of the sources of every text.

    Args:
        own: cross-entropies of the party's own snapshot [N], any unit that all sources share.
        others: of its partners [N, S].
        rule: ``greater`` (FATE-LLM): the least of all, own included; a text that the party itself knows best
            is distilled from its own snapshot. ``weighted_mean`` (FATE-LLM): softmax over the rewards exp(-c)
            of all. ``paper``: the least of the partners, where it is below the own one; nobody elsewhere.

    Returns:
        Weights [N, 1 + S] in float64; rows sum to 1, with ``paper`` to 1 or 0. Ties go to the first source.
    """
    every = np.concatenate([own[:, None], others], axis=1).astype(np.float64)
    assert np.isfinite(every).all(), "cross-entropies are checked where they are read"
    if rule == "weighted_mean":
        rewards = np.exp(-every)
        scaled = np.exp(rewards - rewards.max(axis=1, keepdims=True))
        weights: Values = scaled / scaled.sum(axis=1, keepdims=True)
        return weights
    best = every.argmin(axis=1)  # a partner that only ties with the own snapshot stands after it
    weights = np.eye(every.shape[1])[best]
    if rule == "paper":
        weights[best == 0] = 0
    return weights
