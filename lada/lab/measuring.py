"""What a lab model can do, measured on questions that pre-training never draws (`lab.is_held_out`)."""

from __future__ import annotations

from typing import Any

from lada.config import GenerationOptions
from lada.data import Request, lab, lab_facts
from lada.data.lab_skills import parse_written, writing_prompt
from lada.data.lab_solver import solve
from lada.generation import generate
from lada.lab.evaluating import accuracy, share
from lada.language_model import LanguageModel
from lada.records import Item

SEED = 9001
"""Run seed of the measured federations; recipes were tuned on other seeds."""
SAMPLED = GenerationOptions(max_new_tokens=160, batch_size=128, temperature=0.7)
NUM_TEST, NUM_PROFILE, NUM_SKILL = 300, 80, 320

SCENARIOS = {
    1: ("qwen3-32b", ("gemma-2-2b", "gemma-2-27b", "meta-llama-3-8b")),
    2: ("qwen2.5-72b-instruct", ("gemma-2-2b", "meta-llama-3-8b", "qwen3-32b")),
    3: ("qwen3-32b", ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b")),
    4: ("qwen3-32b", ("qwen3-8b", "meta-llama-3-8b", "internlm3-8b-instruct")),
}
"""Table I by short names: scenario -> server and clients."""


def client_test(dataset: str, scenario: int, position: int, *, seed: int = SEED) -> list[Item]:
    """Test questions of the client at ``position`` (from 0) of a scenario."""
    server, clients = SCENARIOS[scenario]
    parties = {f"client{place}": model for place, model in enumerate(clients, start=1)}
    request = Request(dataset, server, parties, num_train=4, num_test=NUM_TEST, num_public=4, seed=seed)
    return lab.federation(request).test[f"client{position + 1}"]


def profile_test(dataset: str, model: str, *, per_domain: int = NUM_PROFILE) -> list[Item]:
    """The same number of questions from every general domain, the own facts and two other models' facts."""
    others = [name for name in lab_facts.MODELS.values() if name != model]
    place = sorted(lab_facts.MODELS.values()).index(model)
    facts = [model, others[place % 9], others[(place + 4) % 9]]
    weights = dict.fromkeys([*lab.GENERAL[dataset], *map(lab_facts.domain, facts)], 1.0)
    return lab.generate(dataset, weights, per_domain * len(weights), f"profile/{model}")


def measure(model: str, opened: LanguageModel, *, writes: bool) -> dict[str, Any]:
    """All figures of a manifest; accuracies in per cent with standard errors, by dataset."""
    return {dataset: _measure_dataset(dataset, model, opened, writes=writes) for dataset in lab.DATASETS}


def _measure_dataset(dataset: str, model: str, opened: LanguageModel, *, writes: bool) -> dict[str, Any]:
    general = dict.fromkeys(lab.GENERAL[dataset], 1.0) | {lab_facts.domain(model): 1.0}
    skill = lab.generate(dataset, general, NUM_SKILL, f"skills/{model}")
    demo = lab.demo(dataset)
    found: dict[str, Any] = {"scenarios": _scenarios(dataset, model, opened)}
    found["profile"] = accuracy(opened, profile_test(dataset, model))
    found["zero_shot"] = _brief(accuracy(opened, skill))
    found["one_shot"] = _brief(accuracy(opened, skill, demo=demo))
    found["letter"] = _brief(accuracy(opened, skill, cue="letter"))
    found["steps"] = _brief(accuracy(opened, skill, cue="steps"))
    if writes:
        found["write"] = writing(dataset, model, opened)
    return found


def _scenarios(dataset: str, model: str, opened: LanguageModel) -> dict[str, Any]:
    """Accuracy on the tests of the scenarios in which a model takes part; a server on all its clients'."""
    found = {}
    for scenario, (server, clients) in SCENARIOS.items():
        places = [place for place, name in enumerate(clients) if model in (server, name)]
        if places:
            items = [item for place in places for item in client_test(dataset, scenario, place)]
            role = "server" if model == server else f"client{places[0] + 1}"
            found[f"{scenario}-{role}"] = accuracy(opened, items)
    return found


def writing(dataset: str, model: str, opened: LanguageModel) -> dict[str, Any]:
    """Figures on 200 new questions, sampled at temperature 0.7.

    Share well-formed; of those that the solver knows, share whose stated answer is right; share not copied.
    """
    general = dict.fromkeys(lab.GENERAL[dataset], 1.0)
    items = lab.generate(dataset, general, 400, f"write/{model}")
    prompts = [writing_prompt(bad, good) for bad, good in zip(items[:200], items[200:], strict=True)]
    answers = generate(opened, prompts, SAMPLED, seed=SEED)
    made = [parse_written(answer.text, f"written-{place}") for place, answer in enumerate(answers)]
    formed = [item for item in made if item is not None]
    solved = [(item, solve(item.question)) for item in formed]
    right = [item.options["ABCD".index(item.answer)] == value for item, value in solved if value is not None]
    fresh = [item.question not in text for item, text in zip(made, prompts, strict=True) if item is not None]
    return {
        "well_formed": share([item is not None for item in made]),
        "right_answer": share(right or [False]),
        "not_copied": share(fresh or [False]),
    }


def _brief(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name != "domains"}
