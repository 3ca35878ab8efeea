"""Mutual consistency by hand (oracle 9 of baselines, section 11), and with real lab models."""

from __future__ import annotations

import inspect
import random

import pytest

from lada import consistency
from lada.config import GenerationOptions
from lada.consistency import Checked, CheckOptions, beginnings, check, choose, confidences, is_consistent
from lada.data import lab
from lada.language_model import LanguageModel
from lada.methods import rstar
from lada.prompts import prompt, solution
from lada.records import Item, Letter, Trace

TEN = "one two three four five six seven eight nine ten"


def trace(place: int, letter: Letter, reward: float = 1.0, text: str = "so", sample: str = "q1") -> Trace:
    return Trace(id=sample, place=place, text=text, letter=letter, reward=reward)


def test_oracle_9_four_masks_of_ten_words() -> None:
    assert [len(one.split()) for one in beginnings(TEN, CheckOptions())] == [2, 3, 4, 5]
    assert beginnings(TEN, CheckOptions())[0] == "one two"


def test_oracle_9_two_of_four_matches_are_enough() -> None:
    assert is_consistent(["A", "A", "B", None], "A")
    assert not is_consistent(["A", "C", "B", None], "A")
    assert is_consistent(["A", "B", "B", "B", None], "A") is False
    assert is_consistent(["A", "A", "B", "B", None], "A")  # five: two are enough


def test_oracle_9_nothing_here_or_in_the_method_takes_the_right_answer() -> None:
    for module in (consistency, rstar):
        for name, thing in inspect.getmembers(module, inspect.isroutine):
            names = set(inspect.signature(thing).parameters)
            assert not names & {"gold", "items", "sealed", "label", "labels", "right"}, name
            assert not any("Item" in str(one) for one in inspect.get_annotations(thing).values()), name


def test_beginnings_keep_spaces_and_lines_and_hold_a_word_at_least() -> None:
    text = "12 + 5 = 17.\nThe answer  is C"
    for words, one in zip((1, 2, 3, 4), beginnings(text, CheckOptions()), strict=True):
        assert text.startswith(one)
        assert len(one.split()) == words
    assert beginnings("C", CheckOptions()) == ["C"] * 4
    assert [len(one.split()) for one in beginnings(TEN, CheckOptions(masks=2, longest=1.0))] == [2, 10]


@pytest.mark.parametrize("words", range(1, 60))
def test_the_number_of_words_is_rounded_down_whatever_the_last_bit_says(words: int) -> None:
    options = CheckOptions(masks=5, shortest=0.1, longest=0.5)
    text = " ".join(map(str, range(words)))
    lengths = [len(one.split()) for one in beginnings(text, options)]
    assert lengths == [max(1, words * tenth // 10) for tenth in (1, 2, 3, 4, 5)]


def test_confidence_is_the_share_of_rewards() -> None:
    found = confidences([trace(1, "A", 1.0), trace(2, "B", 0.5), trace(3, "A", 0.5)])
    assert found == {"A": 0.75, "B": 0.25}
    assert confidences([trace(1, "A", 0.0), trace(2, "B", 0.0)]) == {"A": 0.5, "B": 0.5}


def test_confidence_and_survival_decide_together() -> None:
    traces = [trace(1, "A", 1.0), trace(2, "A", 1.0), trace(3, "A", 0.5), trace(4, "B", 1.0)]
    one_of_three = {("q1", 1): False, ("q1", 2): False, ("q1", 3): True, ("q1", 4): True}
    assert [one.letter for one in choose(traces, one_of_three)] == ["B"]  # 2.5/3.5 + 1/3 < 1/3.5 + 1
    assert [one.letter for one in choose(traces, None)] == ["A"]
    both = {**one_of_three, ("q1", 1): True}
    assert [(one.letter, one.place) for one in choose(traces, both)] == [("A", 1)]
    assert [one.place for one in choose(traces, both, most=2)] == [1, 3], "consistent and of one answer"


def test_without_a_consistent_trace_there_is_nothing_to_learn() -> None:
    traces = [trace(1, "A"), trace(2, "A")]
    assert choose(traces, {("q1", 1): False}) == []
    assert choose([], None) == []


def test_choice_equals_an_obvious_one_on_random_tables() -> None:
    draw = random.Random(0)
    for _ in range(300):
        count = draw.randint(1, 8)
        traces = [trace(n, draw.choice("ABCD"), draw.choice((0.25, 0.5, 1.0))) for n in range(1, count + 1)]  # type: ignore[arg-type]
        verdicts = {("q1", n): draw.random() < 0.5 for n in range(1, count + 1)}
        total = sum(one.reward for one in traces)
        best: list[tuple[float, float, int]] = []
        for one in traces:
            same = [other for other in traces if other.letter == one.letter]
            alive = [other for other in same if verdicts["q1", other.place]]
            if verdicts["q1", one.place]:
                score = sum(other.reward for other in same) / total + len(alive) / len(same)
                best.append((score, one.reward, one.place))
        chosen = choose(traces, verdicts)
        assert bool(chosen) == bool(best)
        if not best:
            continue
        top = max(score for score, _, _ in best)
        assert any(place == chosen[0].place and abs(score - top) < 1e-12 for score, _, place in best)
        same_answer = [one for one in traces if one.letter == chosen[0].letter and verdicts["q1", one.place]]
        assert chosen[0].reward == max(one.reward for one in same_answer)


def test_options_refuse_what_makes_no_sense() -> None:
    for wrong in ({"masks": 1}, {"shortest": 0.6}, {"temperature": 0.0}, {"longest": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
            CheckOptions.model_validate(wrong)


# -- a real discriminator


@pytest.fixture(scope="module")
def model(lab_llm: LanguageModel) -> LanguageModel:
    return lab_llm


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return lab.generate("lab-math", {"sums": 1.0, "ages": 1.0}, 12, "consistency")


def judged(model: LanguageModel, items: list[Item], *, seed: int = 0, **changes: float) -> Checked:
    """Per item its right solution, and one that claims the next letter for the same steps."""
    traces = {}
    for item in items:
        other: Letter = "ABCD"["BCDA".index(item.answer)]  # type: ignore[assignment]
        wrong = solution(item).replace(f" {item.answer}.", f" {other}.")
        wrong = wrong.replace(f"is {item.answer}", f"is {other}")
        traces[item.id] = [
            trace(1, item.answer, text=solution(item), sample=item.id),
            trace(2, other, 0.5, text=wrong, sample=item.id),
        ]
    return check(
        model,
        traces,
        {item.id: (item, prompt(item)) for item in items},
        CheckOptions.model_validate(changes),
        generation=GenerationOptions(max_new_tokens=64),
        template="lab",
        seed=seed,
    )


@pytest.mark.slow
class TestLabModel:
    def test_it_completes_right_solutions_and_not_wrong_ones(
        self, model: LanguageModel, items: list[Item]
    ) -> None:
        found = judged(model, items)
        right = [value for (_, place), value in found.verdicts.items() if place == 1]
        wrong = [value for (_, place), value in found.verdicts.items() if place == 2]
        assert sum(right) >= 10 and sum(wrong) <= 2
        assert (found.completions, found.skipped) == (12 * 2 * 4, 0)

    def test_sure_answers_are_believed_unasked(self, model: LanguageModel, items: list[Item]) -> None:
        found = judged(model, items, skip_above=0.6)  # right ones have 2/3 of the reward
        assert (found.completions, found.skipped) == (0, 12)
        assert all(value == (place == 1) for (_, place), value in found.verdicts.items())

    def test_a_verdict_depends_on_the_seed_and_not_on_other_questions(
        self, model: LanguageModel, items: list[Item]
    ) -> None:
        all_of_them, some = judged(model, items, temperature=3.0), judged(model, items[3:6], temperature=3.0)
        assert some.verdicts.items() <= all_of_them.verdicts.items()
        assert judged(model, items, temperature=3.0, seed=1).verdicts != all_of_them.verdicts

    @pytest.mark.parametrize(
        "change", [{"masks": 8}, {"shortest": 0.5}, {"longest": 1.0}, {"temperature": 5.0}]
    )
    def test_every_switch_changes_verdicts(
        self, model: LanguageModel, items: list[Item], change: dict[str, float]
    ) -> None:
        warm = {"temperature": 2.5}
        assert judged(model, items, **{**warm, **change}).verdicts != judged(model, items, **warm).verdicts
