"""What becomes of a reply to "write a new question": read, checked, shuffled, balanced, kept or dropped."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import lada.writing
from lada.config import GenerationOptions
from lada.data import lab
from lada.data.lab_skills import written
from lada.data.parsing import Dropped
from lada.embedding import tfidf_embedder
from lada.generation import Generated
from lada.prompts import prompt
from lada.records import LETTERS, Item, Letter, Question
from lada.writing import FORMS, REASONS, Writer, balanced, is_movable, reordered, without_letter

LAB, PLAIN = FORMS["lab"], FORMS["plain"]


def items(count: int, *, dataset: str = "lab-math") -> list[Item]:
    weights = dict.fromkeys(lab.GENERAL[dataset], 1.0)
    return lab.generate(dataset, weights, count, "writing")


def tricky(**changes: Any) -> Item:
    content = {
        "id": "q",
        "question": "Is {x} + \\frac{1}{2} = {y}?",
        "options": ("{u}", "{v}", "\\{w\\}", "{x: {y}}"),
        "answer": "B",
        "rationale": "{v} by \\sum_{i}",
    }
    return Item.model_validate(content | changes)


# -- requests and replies


@pytest.mark.parametrize("dataset", ["lab-math", "lab-cot"])
def test_the_labs_form_reads_what_lab_models_were_taught_to_write(dataset: str) -> None:
    for one in items(60, dataset=dataset):
        found = LAB.parse(written(one))
        assert (found.question, found.options, found.answer) == (one.question, one.options, one.answer)
        assert found.rationale == one.rationale


@pytest.mark.parametrize(
    "reply, reason",
    [
        ("", "malformed"),
        ("Q: Compute 1 + 2. A) 3 B) 4 C) 5\nSolution: 1 + 2 = 3 A.\nThe answer is A", "malformed"),
        ("Q: Compute 1 + 2. A) 3 B) 4 C) 5 D) 4\nSolution: 1 + 2 = 3 A.\nThe answer is A", "malformed"),
        ("Q: Compute 1 + 2. A) 9 B) 4 C) 5 D) 6\nSolution: 1 + 2 = 3 A.\nThe answer is A", "inconsistent"),
        ("Q: Compute 1 + 2. A) 3 B) 4 C) 5 D) 6\nSolution: 1 + 2 = 3 A.\nThe answer is B", "inconsistent"),
        ("Q: Compute 1 + 2. A) 3 B) 4 C) 5 D) 6\nSolution: 1 + 2 = 13 A.\nThe answer is A", "inconsistent"),
    ],
)
def test_a_lab_reply_that_contradicts_itself_is_dropped(reply: str, reason: str) -> None:
    with pytest.raises(Dropped) as caught:
        LAB.parse(reply)
    assert caught.value.reason == reason


def test_the_labs_request_is_one_bad_and_one_good_example() -> None:
    bad, good, other = items(3)
    text = LAB.request(([bad, other], [good, other]), 0)
    assert text.startswith(f"Bad: Q: {other.question}") and f"Good: Q: {good.question}" in text
    assert LAB.request(([], [good]), 0).count(good.question) == 2, "nobody has voted yet"


def test_braces_survive_a_request_and_its_reply() -> None:
    """Pitfall 6."""
    for form in (LAB, PLAIN):
        text = form.request(([tricky()], [tricky()]), 3)
        assert text.count("{x} + \\frac{1}{2} = {y}") == 2 and "{x: {y}}" in text
    reply = (
        " Is {x}?\nAnswer Choices: (A) {u} (B) {v} (C) \\{w\\} (D) {x: {y}}\n"
        "Solution: {v} by \\sum_{i}\nThe answer is (B). And on and on"
    )
    found = PLAIN.parse(reply)
    assert found == tricky(id="new", question="Is {x}?")


def test_the_plain_request_shows_bad_before_good_with_solutions_and_varies() -> None:
    bad, good = items(2)
    text = PLAIN.request(([bad], [good]), 0)
    assert text.index(bad.question) < text.index(good.question) and text.endswith("New example:\nQuestion:")
    assert f"The answer is {good.answer}" in text and str(good.rationale) in text
    texts = {PLAIN.request(([bad], [good]), number) for number in range(12)}
    assert len(texts) == 6
    first = PLAIN.request(([], [good.public()]), 0)
    assert "Bad" not in first and "Solution: " not in first


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Is it?\nAnswer Choices: (A) 1 (B) 2 (C) 3\nSolution: x\nThe answer is A",
        "Is it?\nAnswer Choices: (A) 1 (B) 2 (C) 3 (D) 4\nSolution: x\nThe answer is E",
        "Is it?\nAnswer Choices: (A) 1 (B) 2 (C) 3 (D) 4\nThe answer is A",
    ],
)
def test_a_plain_reply_that_is_not_whole_is_dropped(reply: str) -> None:
    with pytest.raises(Dropped, match="malformed"):
        PLAIN.parse(reply)


# -- order of options


def test_reordering_moves_the_answer_and_the_letter_that_closes_the_rationale() -> None:
    rng = random.Random(0)
    for one in items(80):
        for letter in LETTERS:
            moved = reordered(one, letter, rng)
            assert moved.answer == letter and sorted(moved.options) == sorted(one.options)
            right = one.options[LETTERS.index(one.answer)]
            assert moved.options[LETTERS.index(letter)] == right
            assert str(moved.rationale).endswith(f"= {right} {letter}.")
            assert without_letter(str(moved.rationale), letter) == without_letter(
                str(one.rationale), one.answer
            )


def test_the_wrong_options_are_shuffled_too() -> None:
    rng, one = random.Random(0), items(1)[0]
    orders = {reordered(one, "A", rng).options[1:] for _ in range(60)}
    assert len(orders) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"rationale": "option C is too small, so B"},
        {"options": ("1", "2", "3", "none of these")},
        {"options": ("1", "2", "3", "A and B")},
        {"question": "Which of (A) and (B) is right?"},
    ],
)
def test_a_question_that_names_letters_keeps_its_order(changes: dict[str, object]) -> None:
    assert is_movable(tricky()) and not is_movable(tricky(**changes))
    fixed = tricky(**changes)
    assert balanced(fixed, ["B"] * 9, random.Random(0)) == fixed


def test_letters_are_balanced_as_they_come() -> None:
    rng = random.Random(1)
    letters: list[Letter] = []
    for one in items(41):
        letters.append(balanced(one.model_copy(update={"answer": one.answer}), letters, rng).answer)
    counts = Counter(letters)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert letters[:4] != list(LETTERS), "ties are broken by chance"


# -- asking and keeping


class Scripted:
    """Stands in for the model: the n-th reply of a list, and an independent solution that is right or not."""

    def __init__(self, replies: Sequence[str], wrong: Sequence[str] = ()) -> None:
        self.replies, self.wrong = list(replies), wrong
        self.asked: list[int] = []

    def __call__(self, model: object, prompts: Sequence[str], *_: object, **__: object) -> list[Generated]:
        if prompts and prompts[0].endswith("New:"):
            self.asked.append(len(prompts))
            return [Generated(self.replies.pop(0), 9, True, -0.1) for _ in prompts]
        return [Generated(self._solution(text), 9, True, -0.1) for text in prompts]

    def _solution(self, text: str) -> str:
        """Finds the value of "Compute a + b." among the options that were put."""
        stem, _, rest = text.partition(". A) ")
        total = str(sum(map(int, stem.removeprefix("Q: Compute ").split(" + "))))
        options = rest.removesuffix("\nSolution:")
        values = re.split(r" [BCD]\) ", options)
        return self._said(LETTERS[values.index(total)], stem)

    def _said(self, letter: str, stem: str) -> str:
        if stem.removeprefix("Q: ") in self.wrong:
            letter = "ABCD"[("ABCD".index(letter) + 1) % 4]
        return f"The answer is {letter}"


def reply(a: int, b: int) -> str:
    options = [a + b, a + b + 1, a + b + 2, a + b + 3]
    listed = " ".join(f"{letter}) {value}" for letter, value in zip(LETTERS, options, strict=True))
    return f"Q: Compute {a} + {b}. {listed}\nSolution: {a} + {b} = {a + b} A.\nThe answer is A"


def writer(monkeypatch: pytest.MonkeyPatch, scripted: Scripted, **changes: Any) -> Writer:
    monkeypatch.setattr(lada.writing, "generate", scripted)
    options = GenerationOptions()
    given: dict[str, Any] = {
        "model": None,
        "form": LAB,
        "prompt": lambda question: prompt(question),
        "writing": options,
        "solving": options,
        "embed": tfidf_embedder(["Compute 10 + 11. 21 22 23 24"]),
        "duplicate": 0.95,
        "asks": 3,
        "phase": lambda name, total: lambda done, note: None,
    }
    return Writer(**(given | changes))


def shown(rng: random.Random) -> tuple[list[Question], list[Question]]:
    return [], [items(1)[0].public()]


def write(one: Writer, places: int, known: Sequence[Question] = (), seed: int = 0) -> Any:
    return one.write(places, shown, known=known, letters=[], seed=seed)


def test_good_replies_fill_the_places_with_balanced_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted([reply(10 * n, 11) for n in range(1, 9)])
    kept, counts = write(writer(monkeypatch, scripted), 8)
    assert Counter(one.answer for one in kept) == dict.fromkeys(LETTERS, 2)
    for one in kept:
        a, b = map(int, one.question.removeprefix("Compute ").removesuffix(".").split(" + "))
        assert one.options[LETTERS.index(one.answer)] == str(a + b)
    assert counts == Counter(asked=8, accepted=8, **dict.fromkeys(REASONS, 0))


def test_an_empty_place_is_asked_for_twice_more_and_then_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 7: nothing is ever kept twice to fill a quota."""
    scripted = Scripted([reply(10, 11), "?", "?", "?", reply(20, 31), "?", "?"])
    kept, counts = write(writer(monkeypatch, scripted), 3)
    assert scripted.asked == [3, 2, 1]
    assert [one.question for one in kept] == ["Compute 10 + 11.", "Compute 20 + 31."]
    assert (counts["asked"], counts["accepted"], counts["malformed"]) == (6, 2, 4)


def test_a_letter_that_an_independent_solution_does_not_find_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted = Scripted([reply(10, 11), reply(30, 41)], wrong=["Compute 30 + 41"])
    kept, counts = write(writer(monkeypatch, scripted, asks=1), 2)
    assert [one.question for one in kept] == ["Compute 10 + 11."] and counts["disagreed"] == 1


def test_near_copies_of_known_and_of_new_questions_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [LAB.parse(reply(30, 41))]
    replies = [reply(10, 11), reply(10, 11), reply(30, 41), reply(50, 61)]
    kept, counts = write(writer(monkeypatch, Scripted(replies), asks=1), 4, known)
    assert [one.question for one in kept] == ["Compute 10 + 11.", "Compute 50 + 61."]
    assert counts["duplicate"] == 2
    kept, counts = write(writer(monkeypatch, Scripted(replies), asks=1, duplicate=1.1), 4, known)
    assert len(kept) == 4 and counts["duplicate"] == 0


def test_an_unfinished_reply_is_counted_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    one = writer(monkeypatch, Scripted([]), asks=1)
    monkeypatch.setattr(
        lada.writing,
        "generate",
        lambda model, prompts, *_, **__: [Generated("Q: ", 9, False, -1.0)] * len(prompts),
    )
    kept, counts = write(one, 2)
    assert kept == [] and counts["unfinished"] == 2 and counts["malformed"] == 0


def test_no_place_means_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted([])
    kept, counts = write(writer(monkeypatch, scripted), 0)
    assert kept == [] and scripted.asked == [] and counts["asked"] == 0


def test_every_request_draws_its_own_examples_and_the_same_seed_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = [one.public() for one in items(12)]
    drawn: list[list[str]] = []

    def draw(rng: random.Random) -> tuple[list[Question], list[Question]]:
        chosen = rng.sample(pool, 2)
        drawn[-1] += [one.id for one in chosen]
        return [], chosen

    for seed in (0, 0, 1):
        drawn.append([])
        one = writer(monkeypatch, Scripted(["?"] * 30))
        one.write(10, draw, known=[], letters=[], seed=seed)
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) > 6
    assert drawn[0][:20] != drawn[0][20:40], "other examples when asked again"


def test_vectors_of_known_questions_are_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def embed(texts: Sequence[str]) -> Any:
        seen.append(len(texts))
        return np.zeros((len(texts), 3), dtype=np.float32)

    write(writer(monkeypatch, Scripted([reply(1, 2)]), asks=1, embed=embed), 1, items(5))
    assert seen == [5, 1]
