"""What the filter did, computed on the host side from commits joined with the sealed answers (method, 2.8).

The rows are metrics like any other; none of them is seen by a party.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lada.records import SampleLog


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Area under the ROC curve by ranks, ties counted half; None where one class is empty.

    Args:
        scores: [N] larger means more positive. positive: [N].
    """
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(positive, dtype=bool)
    num_positive, num_negative = int(truth.sum()), int((~truth).sum())
    if not num_positive or not num_negative:
        return None
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    area = ranks[truth].sum() - num_positive * (num_positive + 1) / 2
    return float(area / (num_positive * num_negative))


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson correlation; None where it is not defined."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def filter_metrics(logs: Iterable[SampleLog], answers: Mapping[str, str], seen: set[str]) -> dict[str, float]:
    """Diagnostics of one party's round with one partner.

    Args:
        logs: the samples that the party trained on with this partner.
        answers: public id -> sealed letter. Of a question that the server wrote nobody knows the letter: it
            counts in what needs none.
        seen: public ids selected in earlier rounds; this round's are added.

    Returns:
        ``pairs`` (selected samples with both texts), ``coverage`` |union over rounds| / N,
        ``chosen_right`` (share of pairs whose preferred text is right), ``letters_agree``,
        ``same_text``, ``reward_mean``, ``reward_std`` (label
        spread), ``reward_saturated`` (share < 0.02 or > 0.98), ``auc_reward`` and ``auc_score`` for "the
        preferred text is right", ``corr_paper_paired``, ``explore_to_exploit`` (ratio of standard
        deviations); what is not defined is left out.
    """
    rows = list(logs)
    public = [row for row in rows if row.id in answers]
    seen.update(row.id for row in public)
    found: dict[str, float | None] = {"pairs": float(len(rows))}
    if public or not rows:
        found["coverage"] = len(seen) / max(1, len(answers))
    if public:
        found |= _truth(public, [row.chosen == answers[row.id] for row in public])
    if rows:
        if any(row.rejected is not None for row in rows):  # not so where a method compares no own texts
            found["letters_agree"] = float(np.mean([row.chosen == row.rejected for row in rows]))
            found["same_text"] = float(np.mean([row.same_text for row in rows]))
        found |= _label_spread([row.reward for row in rows if row.reward is not None])
        both = [row for row in rows if row.paper_gain is not None and row.paired_gain is not None]
        found["corr_paper_paired"] = correlation(
            [row.paper_gain or 0.0 for row in both], [row.paired_gain or 0.0 for row in both]
        )
        found["explore_to_exploit"] = _spread_ratio(rows)
    return {name: value for name, value in found.items() if value is not None}


def _truth(rows: Sequence[SampleLog], right: Sequence[bool]) -> dict[str, float | None]:
    return {
        "chosen_right": float(np.mean(right)),
        "auc_score": _auc_of([row.score for row in rows], right),
        "auc_reward": _auc_of([row.reward for row in rows], right),
        "auc_likelihood": _auc_of([row.likelihood for row in rows], right),
    }


def _auc_of(values: Sequence[float | None], right: Sequence[bool]) -> float | None:
    known = [(value, truth) for value, truth in zip(values, right, strict=True) if value is not None]
    return auc([value for value, _ in known], [truth for _, truth in known])


def _label_spread(rewards: Sequence[float]) -> dict[str, float | None]:
    if not rewards:
        return {}
    labels: NDArray[np.float64] = np.asarray(rewards, dtype=np.float64)
    return {
        "reward_mean": float(labels.mean()),
        "reward_std": float(labels.std()),
        "reward_saturated": float(((labels < 0.02) | (labels > 0.98)).mean()),
    }


def _spread_ratio(rows: Sequence[SampleLog]) -> float | None:
    exploit = [row.exploit for row in rows if row.exploit is not None]
    explore = [row.explore for row in rows if row.explore is not None]
    spread = float(np.std(exploit)) if exploit else 0.0
    return float(np.std(explore)) / spread if spread > 0 and explore else None
