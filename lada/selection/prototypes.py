"""Cold start: while no reward is known, take what lies near cluster centres (paper, Section IV-C)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lada.config import Options, Positive
from lada.selection.select import Share

RESTARTS = 10


class ColdOptions(Options):
    """Clusters of round 1; the paper gives no number of prototypes.

    Attributes:
        mode: ``nearest_q`` takes of each of ``clusters`` clusters the ``share`` nearest to its centre;
            ``medoid`` makes share * N clusters and takes the nearest of each.
        clusters: number of clusters of ``nearest_q``.
        share: of each cluster (``nearest_q``) or of all ids (``medoid``).
        components: principal components that distances are measured in.
    """

    mode: Literal["nearest_q", "medoid"] = "nearest_q"
    clusters: Positive = 32
    share: Share = 0.3
    components: Positive = 64


def cold_start(
    ids: Sequence[str], features: NDArray[np.float32], options: ColdOptions, *, seed: int
) -> list[str]:
    """Ids of the first round, sorted and distinct, at least one of each cluster.

    The result does not depend on the order of ``ids``. A pool with fewer distinct points than clusters
    has as many clusters as points.

    Args:
        features: [N, F], rows as ``ids``; scaled to length 1 here.
        seed: of k-means++, the best of 10 restarts.
    """
    assert len(set(ids)) == len(ids) == len(features) > 0, "one row of features for each of the ids"
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    names = [ids[i] for i in order]
    wanted = options.clusters if options.mode == "nearest_q" else math.floor(options.share * len(ids) + 0.5)
    with threadpool_limits(limits=1):  # sums in another order would be another result
        points = _components(np.asarray(features, dtype=np.float64)[order], options.components)
        distinct = len(np.unique(points.round(6), axis=0))
        count = max(1, min(wanted, distinct))
        fitted = KMeans(count, init="k-means++", n_init=RESTARTS, random_state=seed % 2**32).fit(points)
    distances = np.linalg.norm(points - fitted.cluster_centers_[fitted.labels_], axis=1)
    chosen: list[str] = []
    for cluster in range(count):
        members = np.flatnonzero(fitted.labels_ == cluster).tolist()
        members.sort(key=lambda i: (distances[i], names[i]))
        share = math.ceil(options.share * len(members) - 1e-9) if options.mode == "nearest_q" else 1
        chosen += [names[i] for i in members[: max(1, share)]]
    return sorted(chosen)


def _components(rows: NDArray[np.float64], wanted: int) -> NDArray[Any]:
    """Rows of length 1, centred, on their first ``wanted`` principal components (fewer if there are)."""
    scaled = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    centred = scaled - scaled.mean(axis=0)
    # The N x N products have the same components as the F x F ones, and F may be many times N.
    values, vectors = np.linalg.eigh(centred @ centred.T)
    kept = slice(None, -1 - min(wanted, *rows.shape), -1)
    return np.asarray(vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0)))
