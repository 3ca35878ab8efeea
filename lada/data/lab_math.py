"""The general domains of ``lab-math``: small numbers in six kinds of problem, one to four steps each."""

from __future__ import annotations

import random

from lada.data.lab_words import NAMES, THINGS, UNITS, Draft, chain, numeric


def sums(rng: random.Random, size: int) -> Draft:
    """Compute 12 + 5 - 3."""
    start = rng.randint(2, 30)
    rows = chain(rng, start, size)
    stem = f"Compute {start}" + "".join(f" {sign} {operand}" for sign, operand, _, _ in rows) + "."
    return numeric(rng, stem, [(f"{old} {sign} {operand}", new) for sign, operand, old, new in rows])


def ages(rng: random.Random, size: int) -> Draft:
    """Ann is 9. Bob is 3 years older than Ann. How old is Bob?"""
    names = rng.sample(NAMES, size + 1)
    start = rng.randint(3, 25)
    text, steps = f"{names[0]} is {start}.", []
    for number, (sign, years, old, new) in enumerate(chain(rng, start, size), start=1):
        word = "older" if sign == "+" else "younger"
        text += f" {names[number]} is {years} years {word} than {names[number - 1]}."
        steps.append((f"{names[number]} {old} {sign} {years}", new))
    return numeric(rng, f"{text} How old is {names[size]}?", steps, traps=[start])


def money(rng: random.Random, size: int) -> Draft:
    """A pen costs 3 coins. Ann buys 4 pens. How many coins?"""
    name, (first, second) = rng.choice(NAMES), rng.sample(THINGS, 2)
    price, count = rng.randint(2, 9), rng.randint(2, 5)
    cost = price * count
    steps = [(f"{count} * {price}", cost)]
    if size == 1:
        stem = f"A {first} costs {price} coins. {name} buys {count} {first}s. How many coins?"
        return numeric(rng, stem, steps, traps=[price + count])
    if size == 2:
        purse = cost + rng.randint(1, 9)
        stem = f"{name} has {purse} coins and buys {count} {first}s for {price} coins each. How many left?"
        return numeric(rng, stem, [*steps, (f"{purse} - {cost}", purse - cost)], traps=[purse])
    price2, count2 = rng.randint(2, 5), rng.randint(2, 4)
    cost2 = price2 * count2
    stem = (
        f"A {first} costs {price} coins and a {second} {price2} coins."
        f" {name} buys {count} {first}s and {count2} {second}s. How many coins?"
    )
    steps += [(f"{count2} * {price2}", cost2), (f"{cost} + {cost2}", cost + cost2)]
    return numeric(rng, stem, steps)


def units(rng: random.Random, size: int) -> Draft:
    """How many wheels are in 4 cars and 3 wheels less 2?"""
    (many, one, factor), count = rng.choice(UNITS), rng.randint(2, 9)
    name, total = rng.choice(NAMES), count * factor
    stem, steps = f"{name} has {count} {many}", [(f"{count} * {factor}", total)]
    if size > 1:
        more = rng.randint(1, 9)
        stem += f" and {more} {one}"
        steps.append((f"{total} + {more}", total + more))
        total += more
    if size > 2:
        less = rng.randint(1, min(9, total))
        stem += f" and loses {less}"
        steps.append((f"{total} - {less}", total - less))
    return numeric(rng, f"{stem}. How many {one} is that?", steps, traps=[count + factor])


def sequences(rng: random.Random, size: int) -> Draft:
    """Ann counts 5 8 11. What comes next?"""
    step, shown, ahead = rng.randint(1, 9), rng.randint(3, 4), 2 if size == 3 else 1
    up = size == 1 or rng.random() < 0.5
    start = rng.randint(1, 20) if up else rng.randint(step * (shown + 1), 54)
    signed = step if up else -step
    row = [start + signed * place for place in range(shown)]
    sign, last = "+" if up else "-", row[-1]
    gap = f"{row[1]} - {row[0]}" if up else f"{row[0]} - {row[1]}"
    steps = [(gap, step), (f"{last} {sign} {step}", last + signed)]
    if ahead == 2:
        steps.append((f"{last + signed} {sign} {step}", last + 2 * signed))
    asked = "next" if ahead == 1 else "after the next"
    stem = f"{rng.choice(NAMES)} counts {' '.join(map(str, row))}. What comes {asked}?"
    return numeric(rng, stem, steps)


def gaps(rng: random.Random, size: int) -> Draft:
    """Ann has 5 pens and 3 cups. Bob has 4 things. How many more has Ann?"""
    (one, two), (first, second) = rng.sample(NAMES, 2), rng.sample(THINGS, 2)
    if size == 1:
        low, more = rng.randint(1, 20), rng.randint(1, 15)
        stem = f"{one} has {low} {first}s. {two} has {low + more}. How many more has {two}?"
        return numeric(rng, stem, [(f"{low + more} - {low}", more)], traps=[2 * low + more])
    a, b = rng.randint(4, 15), rng.randint(4, 9)
    total = a + b
    stem, steps = f"{one} has {a} {first}s and {b} {second}s.", [(f"{one} {a} + {b}", total)]
    if size == 2:
        other = rng.randint(1, total - 1)
        stem += f" {two} has {other} things."
    else:
        other = rng.randint(3, total - 1)
        c = rng.randint(1, other - 1)
        stem += f" {two} has {c} {first}s and {other - c} {second}s."
        steps.append((f"{two} {c} + {other - c}", other))
    steps.append((f"{total} - {other}", total - other))
    return numeric(rng, f"{stem} How many more has {one}?", steps)


DOMAINS = {
    "sums": sums,
    "ages": ages,
    "money": money,
    "units": units,
    "sequences": sequences,
    "gaps": gaps,
}
