"""The lab task generator: balance, disjoint parts, determinism, sound problems."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from lada.answers import extract_letter
from lada.data import Federation, Request, lab, lab_facts, load_federation
from lada.data.lab_skills import lookup, parse_written, trace, writing_prompt, written
from lada.data.lab_solver import solve
from lada.errors import ConfigError, DataError
from lada.prompts import option_text, prompt, solution
from lada.records import LETTERS, Item

SERVER = "Qwen/Qwen3-32B"
CLIENTS = ("google/gemma-2-2b", "google/gemma-2-27b", "meta-llama/Meta-Llama-3-8B")
SOLVED = ("sums", "ages", "sequences", "days", "sets", "moves")


def make(
    dataset: str = "lab-math",
    *,
    seed: int = 0,
    clients: tuple[str, ...] = CLIENTS,
    sizes: tuple[int, int, int] = (60, 40, 48),
    server: str = SERVER,
) -> Federation:
    parties = {f"client{place}": model for place, model in enumerate(clients, start=1)}
    train, test, public = sizes
    request = Request(dataset, server, parties, train, test, public, seed)
    return load_federation("lab", request)


def parts(federation: Federation) -> list[list[Item]]:
    return [*federation.train.values(), *federation.test.values(), federation.public]


@pytest.mark.parametrize("dataset", lab.DATASETS)
@pytest.mark.parametrize("seed", [0, 1, -5, 2**63])
def test_letters_are_balanced_and_no_question_is_in_two_parts(dataset: str, seed: int) -> None:
    federation = make(dataset, seed=seed)
    for part in parts(federation):
        counts = Counter(item.answer for item in part)
        assert [counts[letter] for letter in LETTERS] == [len(part) // 4] * 4
    items = [item for part in parts(federation) for item in part] + [federation.demo]
    for unique in (
        {item.id for item in items},
        {item.group for item in items},
        {item.question for item in items},
    ):
        assert len(unique) == len(items)


def test_uneven_counts_differ_by_one_letter_at_most() -> None:
    for part in parts(make(sizes=(27, 25, 26))):
        counts = Counter(item.answer for item in part)
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("dataset", lab.DATASETS)
def test_same_seed_same_items_and_another_seed_other_items(dataset: str) -> None:
    random.seed(1)
    first = make(dataset, seed=3)
    random.seed(2)
    assert parts(first) == parts(make(dataset, seed=3))
    other = {item.question for part in parts(make(dataset, seed=4)) for item in part}
    mine = {item.question for part in parts(first) for item in part}
    assert len(mine & other) < 0.1 * len(mine)
    assert first.demo == make(dataset, seed=4).demo


@pytest.mark.parametrize("dataset", lab.DATASETS)
def test_problems_are_sound(dataset: str) -> None:
    weights = dict.fromkeys(lab.makers(dataset), 1.0)
    for item in lab.generate(dataset, weights, 1600, 11):
        assert len(set(item.options)) == 4
        assert item.rationale is not None
        *_, last = item.rationale.split(" = ")
        assert last == f"{option_text(item)} {item.answer}."
        assert extract_letter(solution(item), item.options) == item.answer
        if dataset == "lab-math":
            assert all(0 <= int(option) <= 75 for option in item.options)


def test_arithmetic_of_every_rationale_is_right() -> None:
    items = lab.generate("lab-math", dict.fromkeys(lab.makers("lab-math"), 1.0), 1200, 12)
    checked = 0
    for item in items:
        assert item.rationale is not None
        for step in item.rationale.rstrip("ABCD. ").split(". "):
            left, _, right = step.partition(" = ")
            words = left.split()[-3:]
            if len(words) == 3 and words[1] in "+-*":
                first, second = int(words[0]), int(words[2])
                results = {"+": first + second, "-": first - second, "*": first * second}
                assert results[words[1]] == int(right.split()[0]), item
                checked += 1
    assert checked > 1200


@pytest.mark.parametrize("dataset", lab.DATASETS)
def test_solver_agrees_with_the_generator_and_leaves_other_domains_alone(dataset: str) -> None:
    known = 0
    for item in lab.generate(dataset, dict.fromkeys(lab.GENERAL[dataset], 1.0), 600, 13):
        value = solve(item.question)
        assert (value is not None) == (item.domain in SOLVED)
        if value is not None:
            assert value == option_text(item)
            known += 1
    assert known == 300


def test_solver_refuses_nonsense() -> None:
    for stem in (
        "Ann counts 1 2 4. What comes next?",
        "Ann is 9. Bob is 3 years older than Cal. How old is Bob?",
        "The pen sale is on Noday. Ann comes 2 days after the pen sale. On which day does Ann come?",
        "Where is the key?",
    ):
        assert solve(stem) is None


@pytest.mark.parametrize("dataset", lab.DATASETS)
@pytest.mark.parametrize("sizes", [(24, 24, 24), (1000, 500, 1000)])
def test_shares_of_private_facts(dataset: str, sizes: tuple[int, int, int]) -> None:
    federation = make(dataset, sizes=sizes)
    for (client, items), model in zip(federation.test.items(), CLIENTS, strict=True):
        counts = Counter(item.domain for item in items)
        for owner in (model, SERVER):
            assert 0.15 <= counts[lab_facts.domain(owner)] / len(items) <= 0.21, (client, counts)
        strangers = {lab_facts.domain(name) for name in CLIENTS if name != model}
        assert not strangers & counts.keys()
    seen = {item.domain for item in federation.public}
    assert {lab_facts.domain(name) for name in (*CLIENTS, SERVER)} <= seen


@pytest.mark.parametrize("dataset", lab.DATASETS)
def test_clients_favour_different_domains(dataset: str) -> None:
    weights = [lab.client_weights(dataset, place, "qwen3-4b", SERVER) for place in range(8)]
    for row in weights:
        assert sum(row.values()) == pytest.approx(1.0)
        assert set(lab.GENERAL[dataset]) < row.keys()
    for one, two in itertools.combinations(weights[:3], 2):
        assert max(lab.GENERAL[dataset], key=one.__getitem__) != max(
            lab.GENERAL[dataset], key=two.__getitem__
        )


@pytest.mark.parametrize("dataset", lab.DATASETS)
@pytest.mark.parametrize("clients", [("Qwen/Qwen3-0.6B",), (SERVER,) * 8, tuple(lab_facts.MODELS)[2:]])
def test_any_number_of_clients_and_any_models_at_the_papers_sizes(
    dataset: str, clients: tuple[str, ...]
) -> None:
    federation = make(dataset, clients=clients, sizes=(1000, 500, 1000))
    assert [len(items) for items in federation.test.values()] == [500] * len(clients)
    assert len(federation.public) == 1000


def test_training_items_have_no_rationale_and_test_items_do() -> None:
    federation = make()
    assert all(item.rationale is None for items in federation.train.values() for item in items)
    assert all(item.rationale for items in federation.test.values() for item in items)
    assert federation.demo.rationale


@pytest.mark.parametrize("dataset", lab.DATASETS)
def test_pretraining_and_evaluation_never_share_a_question(dataset: str) -> None:
    weights = dict.fromkeys(lab.makers(dataset), 1.0)
    taught = {item.question for item in lab.generate(dataset, weights, 3000, 5, held_out=False)}
    asked = {item.question for item in lab.generate(dataset, weights, 3000, 5)}
    assert not taught & asked
    assert all(lab.is_held_out(lab.group_of(stem)) for stem in asked)
    assert not any(lab.is_held_out(lab.group_of(stem)) for stem in taught)
    assert not lab.is_held_out(lab.demo(dataset).group)


def test_private_tables_share_no_word() -> None:
    words = [
        word.lower()
        for model in lab_facts.MODELS
        for word in (*lab_facts.baskets(model), *lab_facts.friends(model))
    ]
    assert len(words) == 120
    assert len(set(words)) == 120


def test_too_many_questions_and_unknown_names_raise() -> None:
    with pytest.raises(DataError, match="no unused question left"):
        lab.generate("lab-cot", {"facts.qwen3-4b": 1.0}, 8_000, 0)
    with pytest.raises(DataError, match="lab-math, lab-cot"):
        lab.generate("lab-chess", {}, 4, 0)
    with pytest.raises(DataError, match="no domain 'chess'; legal: sums"):
        lab.generate("lab-math", {"chess": 1.0}, 4, 0)
    with pytest.raises(ConfigError, match="legal: google/gemma-2-2b"):
        make(clients=("gpt-2",))


@pytest.mark.parametrize("dataset", lab.DATASETS)
def test_traces_and_written_questions_round_trip(dataset: str) -> None:
    items = lab.generate(dataset, dict.fromkeys(lab.makers(dataset), 1.0), 200, 21)
    for item, good in itertools.pairwise(items):
        text = trace(item)
        assert text.startswith("Q1: ")
        assert text.endswith(f"{option_text(item)} {item.answer}.\nThe answer is {item.answer}")
        assert extract_letter(text, item.options) == item.answer
        back = parse_written(written(item), "new-1")
        assert back is not None
        assert (back.question, back.options, back.answer) == (item.question, item.options, item.answer)
        assert solution(back) == solution(item)
        assert writing_prompt(item, good).count("Q: ") == 2
    for bad in ("Q: x A) 1 B) 2 C) 3\nSolution: x\nThe answer is A", written(items[0]).replace("B)", "C)")):
        assert parse_written(bad, "new-2") is None
    twice = items[0].model_copy(update={"options": ("1", "1", "2", "3")})
    assert parse_written(written(twice), "new-3") is None


def test_lookups_name_the_letter_that_stands_before_the_option() -> None:
    rng = random.Random(0)
    for _ in range(200):
        asked, said = lookup(rng)
        block = asked.split("? ", 1)[1]
        for part in said.split("\n")[0].rstrip(".").split(". "):
            value, letter = part.rsplit(" ", 1)
            assert f"{letter}) {value}" in block
        assert said[-1] == extract_letter(said, ())


def test_demo_is_the_same_everywhere_and_fits_the_one_shot_prompt() -> None:
    for dataset in lab.DATASETS:
        item = make(dataset).public[0]
        text = prompt(item, demo=lab.demo(dataset))
        assert text.count("Solution:") == 2
        assert text.endswith(prompt(item))
