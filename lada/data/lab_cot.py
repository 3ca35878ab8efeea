"""The general domains of ``lab-cot``: six kinds of word problem, answered by a word."""

from __future__ import annotations

import itertools
import random

from lada.data.lab_words import COLOURS, DAYS, FOODS, NAMES, PETS, ROOMS, THINGS, Draft, worded

SCALES = (("taller", "shorter", "tallest", "shortest"), ("faster", "slower", "fastest", "slowest"))


def orders(rng: random.Random, size: int) -> Draft:
    """Ann is taller than Bob. Cal is shorter than Bob. Who is the tallest?"""
    row = rng.sample(NAMES, 3 if size < 3 else 4)
    more, less, most, least = rng.choice(SCALES)
    facts = [
        f"{low} is {less} than {high}."
        if size > 1 and rng.random() < 0.5
        else f"{high} is {more} than {low}."
        for high, low in itertools.pairwise(row)
    ]
    rng.shuffle(facts)
    top = rng.random() < 0.5
    asked, answer = (most, row[0]) if top else (least, row[-1])
    stem = f"{' '.join(facts)} Who is the {asked}?"
    return worded(rng, stem, [("order", " > ".join(row)), (asked, answer)], mentioned=row, pool=NAMES)


def days(rng: random.Random, size: int) -> Draft:
    """The fair is on Monday. Ann comes 3 days later. On which day does Ann come?"""
    names = rng.sample(NAMES, size)
    day, before = rng.randrange(7), f"the {rng.choice(THINGS)} sale"
    text, steps, mentioned = f"{before.capitalize()} is on {DAYS[day]}.", [], [DAYS[day]]
    for name in names:
        gap, later = rng.randint(1, 5), rng.random() < 0.6
        text += f" {name} comes {gap} day{'s' if gap > 1 else ''} {'after' if later else 'before'} {before}."
        new = (day + gap if later else day - gap) % 7
        steps.append((f"{name} {DAYS[day]} {'+' if later else '-'} {gap}", DAYS[new]))
        day, before = new, name
        mentioned.append(DAYS[day])
    stem = f"{text} On which day does {names[-1]} come?"
    return worded(rng, stem, steps, mentioned=mentioned[:2], pool=DAYS)


def sets(rng: random.Random, size: int) -> Draft:
    """Ann likes figs, nuts. Bob likes nuts, peas. What do both like?"""
    one, two = rng.sample(NAMES, 2)
    width = 2 if size == 1 else 3
    foods = rng.sample(FOODS, 2 * width - 1)
    both, left, right = foods[0], foods[:width], [foods[0], *foods[width:]]
    rng.shuffle(left)
    rng.shuffle(right)
    tried = left[: left.index(both) + 1]
    steps = [(food, "yes" if food == both else "no") for food in tried]
    verb = rng.choice(("likes", "buys", "cooks"))
    stem = f"{one} {verb} {', '.join(left)}. {two} {verb} {', '.join(right)}. Which food is in both lists?"
    return worded(rng, stem, [*steps, ("both", both)], mentioned=[*left, *right], pool=FOODS)


def passages(rng: random.Random, size: int) -> Draft:
    """Ann owns the cat. Bob owns the dog. The cat is red. The dog is blue. What colour is the pet of Bob?"""
    count = 2 if size == 1 else 3
    names, pets, colours = (rng.sample(pool, count) for pool in (NAMES, PETS, COLOURS))
    owns = [f"{name} owns the {pet}." for name, pet in zip(names, pets, strict=True)]
    looks = [f"The {pet} is {colour}." for pet, colour in zip(pets, colours, strict=True)]
    facts = [*owns, *looks]
    rng.shuffle(facts)
    name, pet, colour = names[0], pets[0], colours[0]
    if rng.random() < 0.5:
        stem = f"{' '.join(facts)} What colour is the pet of {name}?"
        return worded(rng, stem, [(f"{name} pet", pet), (pet, colour)], mentioned=colours, pool=COLOURS)
    stem = f"{' '.join(facts)} Who owns the {colour} pet?"
    return worded(rng, stem, [(f"{colour} pet", pet), (f"{pet} owner", name)], mentioned=names, pool=NAMES)


def moves(rng: random.Random, size: int) -> Draft:
    """Ann is in the hall. Bob is in the barn. Ann takes the key. Ann goes to the yard. Where is the key?"""
    (one, two), thing = rng.sample(NAMES, 2), rng.choice(THINGS)
    rooms = rng.sample(ROOMS, 4)
    place = {one: rooms[0], two: rooms[1]}
    text = f"{one} is in the {rooms[0]}. {two} is in the {rooms[1]}."
    taker, other = (one, two) if rng.random() < 0.5 else (two, one)
    text += f" {taker} takes the {thing}."
    movers = {1: [taker], 2: [taker, other], 3: [taker, other, taker]}[size]
    if size == 2 and rng.random() < 0.5:
        movers.reverse()
    for mover, room in zip(movers, (rooms[2], rooms[3], rng.choice(rooms[:2])), strict=False):
        text += f" {mover} goes to the {room}."
        place[mover] = room
    steps = [(f"{thing} with", taker), (f"{taker} in", place[taker])]
    return worded(rng, f"{text} Where is the {thing}?", steps, mentioned=rooms, pool=ROOMS)


def swaps(rng: random.Random, size: int) -> Draft:
    """Ann holds the key, Bob the cup, Cal the hat. Ann and Bob swap. What does Bob hold?"""
    names, things = rng.sample(NAMES, 3), rng.sample(THINGS, 3)
    holds = dict(zip(names, things, strict=True))
    text = f"{names[0]} holds the {things[0]}, {names[1]} the {things[1]}, {names[2]} the {things[2]}."
    steps: list[tuple[str, str]] = []
    last: list[str] = []
    for _ in range(size):
        pair = rng.sample(names, 2)
        while sorted(pair) == sorted(last):
            pair = rng.sample(names, 2)
        one, two = last = pair
        holds[one], holds[two] = holds[two], holds[one]
        text += f" {one} and {two} swap."
        steps.append((f"{one} {two}", f"{holds[one]} {holds[two]}"))
    asked = rng.choice(names if rng.random() < 0.3 else last)
    stem = f"{text} What does {asked} hold?"
    return worded(rng, stem, [*steps, (asked, holds[asked])], mentioned=things, pool=THINGS)


DOMAINS = {
    "orders": orders,
    "days": days,
    "sets": sets,
    "passages": passages,
    "moves": moves,
    "swaps": swaps,
}
