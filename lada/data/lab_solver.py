"""Solves lab questions from their text alone, to check questions that a model wrote.

Knows three general domains of each dataset; for all other text the answer is None.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

from lada.data.lab_words import DAYS


def solve(stem: str) -> str | None:
    """The right option's text, or None when the question is not one of the known kinds or makes no sense."""
    for pattern, solver in _SOLVERS:
        match = re.fullmatch(pattern, stem)
        if match:
            return solver(match)
    return None


def _sums(match: re.Match[str]) -> str | None:
    return str(_total(int(match["start"]), re.findall(r"([+-]) (\d+)", match["rest"])))


def _ages(match: re.Match[str]) -> str | None:
    known = {match["name"]: int(match["start"])}
    for name, years, word, other in re.findall(
        r"(\w+) is (\d+) years (older|younger) than (\w+)\.", match["rest"]
    ):
        if other not in known:
            return None
        known[name] = known[other] + (int(years) if word == "older" else -int(years))
    return str(known[match["asked"]]) if match["asked"] in known else None


def _sequences(match: re.Match[str]) -> str | None:
    row = [int(number) for number in match["row"].split()]
    steps = {after - before for before, after in itertools.pairwise(row)}
    if len(steps) != 1:
        return None
    return str(row[-1] + steps.pop() * (2 if match["asked"] == "after the next" else 1))


def _days(match: re.Match[str]) -> str | None:
    if match["day"] not in DAYS:
        return None
    known = {match["event"]: DAYS.index(match["day"])}
    for name, gap, word, other in re.findall(
        r"(\w+) comes (\d+) days? (after|before) (?:the )?([\w ]+)\.", match["rest"]
    ):
        if other not in known:
            return None
        known[name] = known[other] + (int(gap) if word == "after" else -int(gap))
    return DAYS[known[match["asked"]] % 7] if match["asked"] in known else None


def _sets(match: re.Match[str]) -> str | None:
    both = set(match["left"].split(", ")) & set(match["right"].split(", "))
    return both.pop() if len(both) == 1 else None


def _moves(match: re.Match[str]) -> str | None:
    place: dict[str, str] = dict(re.findall(r"(\w+) (?:is in|goes to) the (\w+)\.", match["rest"]))
    taker = re.search(rf"(\w+) takes the {match['thing']}\.", match["rest"])
    return place.get(taker[1]) if taker else None


def _total(start: int, changes: list[tuple[str, str]]) -> int:
    return start + sum(int(number) if sign == "+" else -int(number) for sign, number in changes)


_SOLVERS: tuple[tuple[str, Callable[[re.Match[str]], str | None]], ...] = (
    (r"Compute (?P<start>\d+)(?P<rest>( [+-] \d+)+)\.", _sums),
    (r"(?P<name>\w+) is (?P<start>\d+)\.(?P<rest>.+) How old is (?P<asked>\w+)\?", _ages),
    (r"\w+ counts (?P<row>\d+( \d+)+)\. What comes (?P<asked>next|after the next)\?", _sequences),
    (
        r"The (?P<event>\w+ sale) is on (?P<day>\w+)\.(?P<rest>.+) On which day does (?P<asked>\w+) come\?",
        _days,
    ),
    (r"\w+ (\w+) (?P<left>[\w, ]+)\. \w+ \1 (?P<right>[\w, ]+)\. Which food is in both lists\?", _sets),
    (r"(?P<rest>.+) Where is the (?P<thing>\w+)\?", _moves),
)
