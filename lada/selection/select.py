"""The selection rule: which ids a party trains on next, given their scores (paper, Section IV-C)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lada.config import Fraction, Options

Scored = Mapping[str, float] | tuple[Sequence[str], NDArray[Any]]
Share = Annotated[float, Field(gt=0, le=1)]


class SelectOptions(Options):
    """How many and which.

    Attributes:
        mode: ``filter`` asks the scores; ``all`` is the ablation without a filter; ``random`` draws a
            ``share`` without looking at scores; ``oracle`` opens the sealed answers and draws from what the
            partner answers rightly: an upper bound of choosing, never a method.
        replay: a finished run of the same data (run id beside this run, or a folder): ``random`` and
            ``oracle`` draw as many per round and pair as its filters selected, in place of ``share``.
        threshold: what a score must exceed.
        share: of all ids, for the rules and modes that take a share.
        rule: ``threshold`` takes scores above ``threshold`` (the paper's reading), ``topk`` the best
            ``share``, ``quantile`` the same with all ties, ``softmax_sample`` a ``share`` drawn with odds
            that grow with the score.
        center: ``ema`` moves the threshold to the moving average of rewards.
        min_frac: least selected share of all ids; the best scored fill it.
        max_frac: largest selected share of all ids; the best scored stay.
        refine: drop what the filter no longer wants from a batch before its update, see `refine`.
        fresh: take no id twice while others remain (an addition to the paper).
    """

    mode: Literal["filter", "all", "random", "oracle"] = "filter"
    replay: str | None = None
    rule: Literal["threshold", "topk", "quantile", "softmax_sample"] = "threshold"
    threshold: Fraction = 0.5
    share: Share = 0.2
    center: Literal["none", "ema"] = "none"
    min_frac: Fraction = 0.1
    max_frac: Share = 1.0
    refine: bool = False
    fresh: bool = False

    @model_validator(mode="after")
    def _bounds(self) -> SelectOptions:
        if self.min_frac > self.max_frac:
            raise ValueError(f"min_frac {self.min_frac} is above max_frac {self.max_frac}")
        if self.replay is not None and self.mode not in ("random", "oracle"):
            raise ValueError(f"replay needs mode random or oracle, not {self.mode}")
        return self


def select(
    scores: Scored,
    options: SelectOptions,
    *,
    seed: int,
    centre: float | None = None,
    used: Collection[str] = frozenset(),
    count: int | None = None,
    right: Collection[str] | None = None,
) -> list[str]:
    """Ids to train on, sorted; never empty (but see ``right``); the same for any order of ``scores``.

    Ties are broken by id. Shares are of all ids, also with ``fresh``, whose selection ends where unused
    ids end. Choice: ``softmax_sample`` draws without replacement from softmax(score / std of scores).

    Args:
        scores: id to score, or ids with an array [N] of scores.
        seed: of the draw; ``threshold``, ``topk`` and ``quantile`` draw nothing.
        centre: what ``center: ema`` centres on; None, before the first reward, is no shift.
        used: ids selected in earlier rounds, for ``fresh``.
        count: modes ``random`` and ``oracle`` draw that many, if there are, in place of ``share``.
        right: mode ``oracle`` draws from these alone, and takes nothing where there are none; None: the
            partner's texts are not here yet, so everything must be asked for.
    """
    scored = _pairs(scores)
    if options.mode == "all" or (options.mode == "oracle" and right is None):
        return sorted(scored)
    total = len(scored)
    if options.mode == "oracle":
        scored = {key: value for key, value in scored.items() if key in (right or ())}
    unused = {key: value for key, value in scored.items() if key not in used} if options.fresh else {}
    ranked = _ranked(unused or scored)
    if options.mode in ("random", "oracle"):
        order = np.random.default_rng(seed).permutation(sorted(ranked))
        return sorted(order[: _at_least_one(options.share * total) if count is None else count].tolist())
    if options.rule == "softmax_sample":
        ranked = _drawn(ranked, seed)
    least = min(len(ranked), _at_least_one(math.ceil(options.min_frac * total - 1e-9)))
    most = max(least, math.floor(options.max_frac * total + 1e-9))
    wanted = _wanted(ranked, options, total, centre)
    return sorted(list(ranked)[: min(max(wanted, least), most)])


def refine(scores: Mapping[str, float], options: SelectOptions, *, centre: float | None = None) -> list[str]:
    """What is left of a batch after the filter, as it is now, looked at it again, sorted.

    Choice: the best one stays when the filter wants none, so that an optimiser step is never empty.

    Args:
        scores: the batch's ids and fresh scores.
    """
    if not options.refine or options.mode != "filter":
        return sorted(scores)
    ranked = _ranked(_pairs(scores))
    return sorted(list(ranked)[: max(1, _above(ranked, options, centre))])


def _wanted(ranked: Mapping[str, float], options: SelectOptions, total: int, centre: float | None) -> int:
    """How many of the ranked ids the rule takes, before the bounds."""
    if options.rule == "threshold":
        return _above(ranked, options, centre)
    count = min(len(ranked), _at_least_one(options.share * total))
    if options.rule == "quantile":
        values = list(ranked.values())
        return sum(value >= values[count - 1] for value in values)
    return count


def _above(ranked: Mapping[str, float], options: SelectOptions, centre: float | None) -> int:
    shift = 0.5 - centre if options.center == "ema" and centre is not None else 0.0
    return sum(value + shift > options.threshold for value in ranked.values())


def _ranked(scored: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(scored.items(), key=lambda pair: (-pair[1], pair[0])))


def _drawn(ranked: Mapping[str, float], seed: int) -> dict[str, float]:
    """Ids in the order of a draw without replacement (Gumbel top-k)."""
    values = np.asarray(list(ranked.values()))
    scale = float(values.std()) or 1.0
    keys = values / scale + np.random.default_rng(seed).gumbel(size=len(values))
    return {key: ranked[key] for key in _ranked(dict(zip(ranked, keys.tolist(), strict=True)))}


def _pairs(scores: Scored) -> dict[str, float]:
    ids, values = (list(scores), list(scores.values())) if isinstance(scores, Mapping) else scores
    scored = {key: float(value) for key, value in zip(ids, values, strict=True)}
    assert scored and len(scored) == len(ids), "scores of at least one id, each once"
    assert all(map(math.isfinite, scored.values())), "a score is not a number"
    return scored


def _at_least_one(count: float) -> int:
    return max(1, math.floor(count + 0.5))
