"""Actions of the tree search: how they are asked, how votes count, and what real lab models make of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import pytest

from lada import tree_actions, tree_search, tree_texts
from lada.config import GenerationOptions
from lada.data import lab
from lada.data.lab_skills import trace
from lada.errors import ConfigError
from lada.generation import Generated
from lada.language_model import LanguageModel
from lada.prompts import prompt, solution
from lada.records import Item, Question
from lada.tree_actions import Expander, Partial, SearchOptions, solutions
from lada.tree_search import Tree, search
from lada.tree_texts import FORMS, Thought, answer_key, restates

LIMIT = GenerationOptions(max_new_tokens=64, batch_size=128)
QUESTION = Question(
    id="q1",
    question="Bob has 3.5 kg of figs. Bob buys 2 more. How many kg has Bob?",
    options=("5", "5.5", "3.5", "1.5"),
)


# -- forms


def test_the_labs_forms_are_what_its_models_were_taught() -> None:
    form = FORMS["lab"]
    for dataset in lab.DATASETS:
        weights = dict.fromkeys(lab.GENERAL[dataset], 1.0)
        for item in lab.generate(dataset, weights, 30, "forms"):
            assert item.rationale is not None
            parts = item.rationale.rstrip(".").split(". ")
            steps = [Thought(text=part.rpartition(" = ")[2], ask=part.rpartition(" = ")[0]) for part in parts]
            *before, last = steps
            whole = form.solution(before, f"{form.answered(last.ask or '', last.text)}.")
            assert f"{whole}\nThe answer is {item.answer}" == solution(item)
            asked = f"{form.trace(before, last.ask)} {last.text}."
            assert f"{asked}\nThe answer is {item.answer}" == trace(item)
            assert trace(item).startswith(form.trace(before))


def test_a_plain_solution_has_a_line_a_step() -> None:
    form, steps = FORMS["plain"], [Thought("He bought 2.", "How many did he buy?"), Thought("So 5.5.")]
    assert form.solution(steps) == "How many did he buy? He bought 2.\nSo 5.5.\n"
    assert (
        form.trace(steps[:1], "And now?") == "Q1: How many did he buy?\nA1: He bought 2.\nQ2: And now?\nA2:"
    )
    assert form.stop == "\n"


@pytest.mark.parametrize(
    ("ask", "stem", "expected"),
    [
        ("How many kg has Bob?", QUESTION.question, True),
        ("Now we can answer: how many kg has Bob", QUESTION.question, True),
        ("How many kg did Bob buy?", QUESTION.question, False),
        ("What is 5?", "Which is right? A) 3.5 B) 5.", False),  # a full stop inside a number cuts nothing
        ("Anything?", "", False),  # pitfall 3: an empty fragment would end every search
        ("Anything?", "Is it so? ...", False),
        ("So is it so?", "Is it so? ...", True),
    ],
)
def test_a_sub_question_is_the_last_one_when_it_repeats_the_questions_last_sentence(
    ask: str, stem: str, expected: bool
) -> None:
    assert restates(ask, stem) is expected


def test_sub_answers_are_equal_by_number_or_by_words() -> None:
    assert answer_key("So he has 1,200 figs") == answer_key("1200")
    assert answer_key("3.5 - 1 = 2.5.") == "2.5"
    assert answer_key(" On Monday!") == answer_key("on monday") != answer_key("on Sunday")


# -- votes, with scripted completions

Script = Callable[[str, str], str]
"""Beginning of a response and stop string ("" for none) -> what is written; "|" at the end: cut off."""


@pytest.fixture()
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], list[tuple[str, str, str]]]:
    def install(script: Script) -> list[tuple[str, str, str]]:
        calls: list[tuple[str, str, str]] = []

        def fake(
            model: object,
            prompts: Sequence[str],
            options: GenerationOptions,
            *,
            seed: Sequence[int],
            partials: Sequence[str],
            stops: Sequence[str | None],
            progress: object,
            resume: object,
        ) -> list[Generated]:
            assert len(set(seed)) == len(seed), "every completion has a seed of its own"
            found = []
            for text, begun, stop in zip(prompts, partials, stops, strict=True):
                calls.append((text, begun, stop or ""))
                written = script(begun, stop or "")
                cut = written.endswith("|")
                stopped = not cut and stop is not None and stop in written
                added = (written.partition(stop)[0] if stopped and stop else written).strip(" |")
                whole = f"{begun.strip()} {added}".strip()
                found.append(Generated(whole, 1, not (cut or stopped), -1.0, stopped=stopped, added=added))
            return found

        monkeypatch.setattr(tree_actions, "generate", fake)
        return calls

    return install


def expander(template: str = "lab", **changes: object) -> Expander:
    model: LanguageModel = None  # type: ignore[assignment]  # the script answers
    return Expander(model, SearchOptions.model_validate(changes), LIMIT, template)


def turns(texts: Sequence[str]) -> Callable[[], str]:
    """The given texts in turn, again and again."""
    state = {"place": -1}

    def following() -> str:
        state["place"] = (state["place"] + 1) % len(texts)
        return texts[state["place"]]

    return following


def test_a_direct_answer_is_the_first_of_the_most_frequent_and_useless_ones_count(scripted) -> None:
    finish = turns(["x C.\nThe answer is C", "y B.\nThe answer is B", "z B.\nThe answer is B", "no letter"])
    scripted(lambda begun, stop: finish())
    expand = expander(actions=("A2",), final_votes=8)
    ((child,),) = expand([(Tree(Partial(QUESTION), 1), 0)])
    assert (child.kind, child.state.letter, child.state.text) == ("DA", "B", "y B.\nThe answer is B")
    assert child.reward == 4 / 8
    assert (expand.drawn, expand.dropped) == (8, 2)


def test_of_equally_frequent_answers_the_first_counts_and_none_makes_no_child(scripted) -> None:
    finish = turns(["The answer is D", "The answer is A"])
    scripted(lambda begun, stop: finish())
    ((child,),) = expander(actions=("A2",))([(Tree(Partial(QUESTION), 1), 0)])
    assert (child.state.letter, child.reward) == ("D", 0.5)
    scripted(lambda begun, stop: "never ends|")
    assert expander(actions=("A2",))([(Tree(Partial(QUESTION), 1), 0)]) == [[]]


def test_a_thought_that_ends_the_solution_is_paid_by_its_parents_votes(scripted) -> None:
    finish = turns(["The answer is A", "The answer is A", "The answer is A", "The answer is D"])
    thought = turns(["1 + 1 = 2. 3", "so D.\nThe answer is D", "so C.\nThe answer is C"])
    scripted(lambda begun, stop: thought() if stop else finish())
    (children,) = expander(actions=("A1", "A2"), thoughts=3)([(Tree(Partial(QUESTION), 1), 0)])
    going, right, wrong, direct = children
    assert (going.kind, going.reward, going.state.steps) == ("OST", None, (Thought("1 + 1 = 2"),))
    assert (right.kind, right.state.letter, right.reward) == ("OST", "D", 0.25)
    assert (wrong.state.letter, wrong.reward) == ("C", 0.0)
    assert (direct.kind, direct.reward) == ("DA", 0.75)


def test_sub_questions_are_asked_then_voted_on_and_equal_ones_are_one_child(scripted) -> None:
    answers = turns(["17. Q2", "17. Q2", "18. Q2", "17. Q2"])

    def script(begun: str, stop: str) -> str:
        if stop == "?":
            return "12 + 5? A1"
        return answers() if begun.endswith("A1:") else "The answer is B"

    calls = scripted(script)
    expand = expander(actions=("A2", "A3"), sub_questions=3, votes=4)
    (children,) = expand([(Tree(Partial(QUESTION), 1), 0)])
    assert [child.kind for child in children] == ["DA", "SQ"]
    assert children[1].state.steps == (Thought("17", "12 + 5"),)
    assert children[1].reward is None
    asked = [(begun, stop) for _, begun, stop in calls if begun]
    assert asked == [(" Q1:", "?")] * 3 + [(" Q1: 12 + 5? A1:", ". ")] * 4
    assert all(text.endswith("Steps:") for text, begun, _ in calls if begun)
    assert all(text.endswith("Solution:") for text, begun, _ in calls if not begun)


def test_each_sub_question_has_its_own_number_of_votes(scripted) -> None:
    """Pitfall 4: the question restated by one of them changes nothing for the other."""
    asks = turns(["How much did he buy?\nA1", "How many kg has Bob?\nA1"])

    def script(begun: str, stop: str) -> str:
        if begun.strip() == "Q1:":
            return asks()
        return "2 kg\nQ2" if stop else "3.5 and 2 make 5.5. The answer is B"

    calls = scripted(script)
    expand = expander("plain", actions=("A2", "A3"), votes=5, final_votes=9)
    (children,) = expand([(Tree(Partial(QUESTION), 1), 0)])
    numbers = {ask: sum(ask in begun for _, begun, _ in calls) for ask in ("he buy", "has Bob")}
    assert numbers == {"he buy": 5, "has Bob": 9}
    going, last = children[1:]
    assert (going.reward, going.state.steps) == (None, (Thought("2 kg", "How much did he buy?"),))
    assert (last.kind, last.state.letter, last.reward) == ("SQ", "B", 1.0)
    assert last.state.text == "How many kg has Bob? 3.5 and 2 make 5.5. The answer is B"


def test_a_lab_answer_with_a_letter_ends_the_solution_which_is_handed_on_as_one(scripted) -> None:
    def script(begun: str, stop: str) -> str:
        return {"?": "17 - 3?"}.get(stop, "14 C.\nThe answer is C")

    scripted(script)
    tree = Tree(Partial(QUESTION, (Thought("17", "12 + 5"),)), 1)
    tree.nodes[0].kind = "SQ"
    (children,) = expander(actions=("A2", "A3"))([(tree, 0)])
    assert children[1].state.text == "12 + 5 = 17. 17 - 3 = 14 C.\nThe answer is C"
    assert (children[1].state.letter, children[1].reward) == ("C", 1.0)


def test_the_last_sub_question_is_answered_again_as_a_step_of_a_solution(scripted) -> None:
    calls = scripted(lambda begun, stop: "18. 1" if stop else "The answer is A")
    tree = Tree(Partial(QUESTION, (Thought("9", "4 + 5"), Thought("17", "12 + 5"))), 1)
    tree.nodes[0].kind = "SQ"
    (children,) = expander(actions=("A2", "A4"), votes=6)([(tree, 0)])
    again = children[-1]
    assert (again.kind, again.state.steps) == ("RS", (Thought("9", "4 + 5"), Thought("18", "12 + 5")))
    assert [(begun, stop) for _, begun, stop in calls if stop] == [(" 4 + 5 = 9. 12 + 5 =", ". ")] * 6
    tree.nodes[0].kind = "RS"
    (children,) = expander(actions=("A2", "A4"))([(tree, 0)])
    assert [child.kind for child in children] == ["DA"], "only below A3"


def test_a_rephrased_question_keeps_its_options_and_is_what_children_read(scripted) -> None:
    calls = scripted(
        lambda begun, stop: "Bob: 3.5 kg, plus 2. How much?\n" if stop else "It is 5.5. The answer is B"
    )
    expand = expander("plain", actions=("A2", "A5"))
    tree = Tree(Partial(QUESTION), 1)
    (children,) = expand([(tree, 0)])
    assert [child.kind for child in children] == ["DA", "RU"]
    new = children[1].state.question
    assert (new.question, new.options) == ("Bob: 3.5 kg, plus 2. How much?", QUESTION.options)
    tree.grow(0, children)
    calls.clear()
    expand([(tree, 2)])
    assert calls and all("Bob: 3.5 kg, plus 2. How much?" in text for text, _, _ in calls)


def test_lab_models_cannot_rephrase_and_every_search_can_finish() -> None:
    with pytest.raises(ConfigError, match="A5"):
        expander(actions=("A2", "A5"))
    for actions in (("A1",), ("A2", "A2")):
        with pytest.raises(ValueError, match="A2"):
            SearchOptions(actions=actions)
    with pytest.raises(ValueError, match="votes"):
        SearchOptions(votes=3)  # one vote is no confidence


def test_options_are_rstar_lite_and_no_stop_string_is_a_word_of_a_question() -> None:
    lite = SearchOptions()
    assert lite.actions == ("A1", "A2", "A3")
    assert (lite.rollouts, lite.depth, lite.exploration) == (4, 3, 2.0)
    assert (lite.thoughts, lite.sub_questions, lite.votes, lite.final_votes) == (2, 2, 4, 8)
    assert (lite.temperature, lite.top_k, lite.top_p) == (0.8, 40, 0.95)
    for form in FORMS.values():
        assert not any(sign.isalpha() or sign == "#" for sign in form.stop + form.ask_stop)


def test_solutions_are_the_best_ones_each_text_once() -> None:
    tree = Tree(Partial(QUESTION), 1)
    given = [("a", "A", 0.5), ("b", "B", 1.0), ("a ", "A", 0.75), ("c", "C", 0.5), ("d", "D", 0.0)]
    tree.grow(
        0,
        [
            tree_actions.Child("DA", Partial(QUESTION, text=text, letter=letter), reward)  # type: ignore[arg-type]
            for text, letter, reward in given
        ],
    )
    found = [(one.text, one.letter, one.reward) for one in solutions(tree, 3)]
    assert found == [("b", "B", 1.0), ("a ", "A", 0.75), ("c", "C", 0.5)]


def test_no_signature_asks_for_the_right_answer() -> None:
    for module in (tree_actions, tree_search, tree_texts):
        for name, thing in inspect.getmembers(module, inspect.isroutine):
            names = set(inspect.signature(thing).parameters)
            assert not names & {"gold", "item", "items", "sealed", "label", "labels"}, name


# -- real lab models


@pytest.fixture(scope="module")
def model(lab_llm: LanguageModel) -> LanguageModel:
    return lab_llm


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return lab.generate("lab-math", dict.fromkeys(lab.GENERAL["lab-math"], 1.0), 6, "tree search")


def grown(model: LanguageModel, items: Sequence[Item], **changes: object) -> list[Tree[Partial]]:
    options = SearchOptions.model_validate({"rollouts": 2, **changes})
    expand = Expander(model, options, LIMIT, "lab")
    trees = [Tree(Partial(item.public()), number) for number, item in enumerate(items)]
    search(trees, expand, options)
    return trees


def contents(trees: Sequence[Tree[Partial]]) -> list[object]:
    return [(node.state, node.reward, node.visits) for tree in trees for node in tree.nodes]


WARM = {"temperature": 3.0, "top_p": 1.0}


@pytest.fixture(scope="module")
def warm(model: LanguageModel, items: list[Item]) -> list[object]:
    """So warm that lab models, which are sure of such questions, say different things."""
    return contents(grown(model, items[:3], **WARM))


def texts(trees: Sequence[Tree[Partial]]) -> list[str]:
    return [state.text for tree in trees for state, _ in tree.answers()]


@pytest.mark.slow
class TestLabModel:
    def test_it_solves_questions_by_every_action(self, model: LanguageModel, items: list[Item]) -> None:
        trees = grown(model, items, actions=("A1", "A2", "A3", "A4"))
        kinds = {node.kind for tree in trees for node in tree.nodes}
        assert kinds == {"U", "OST", "SQ", "RS", "DA"}
        best = [solutions(tree, 1)[0].letter for tree in trees]
        assert sum(letter == item.answer for letter, item in zip(best, items, strict=True)) >= 5
        for tree in trees:
            for node in tree.nodes:
                if node.kind == "SQ" and node.state.text:
                    assert "Q1:" not in node.state.text, "handed on as a solution"
                    assert node.state.text.endswith(f"The answer is {node.state.letter}")

    def test_right_solutions_are_written_as_they_are_taught(
        self, model: LanguageModel, items: list[Item]
    ) -> None:
        trees = grown(model, items)
        found = [solution(item) in texts([tree]) for tree, item in zip(trees, items, strict=True)]
        assert sum(found) >= 4

    def test_a_tree_does_not_depend_on_its_neighbours(self, model: LanguageModel, items: list[Item]) -> None:
        together = grown(model, items)
        assert texts(grown(model, items[:2])) == texts(together[:2])

    @pytest.mark.parametrize(
        "change",
        [
            {"rollouts": 4},
            {"depth": 1},
            {"actions": ("A1", "A2")},
            {"thoughts": 4},
            {"sub_questions": 4},
            {"votes": 12},
            {"final_votes": 40},
            {"temperature": 0.5},
            {"top_k": 2},
            {"top_p": 0.3},
        ],
    )
    def test_every_switch_changes_the_trees(
        self,
        model: LanguageModel,
        items: list[Item],
        warm: list[object],
        change: dict[str, object],
    ) -> None:
        assert contents(grown(model, items[:3], **{**WARM, **change})) != warm

    def test_the_prompt_shows_a_demo_for_solutions_alone(
        self, model: LanguageModel, items: list[Item]
    ) -> None:
        expand = Expander(model, SearchOptions(), LIMIT, "lab", demo=lab.demo("lab-math"))
        state = Partial(items[0].public())
        assert expand._prompt(state, "thoughts") == prompt(items[0], demo=lab.demo("lab-math"))
        assert expand._prompt(state, "asking") == prompt(items[0], cue="steps")
