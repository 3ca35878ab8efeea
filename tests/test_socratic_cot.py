"""Socratic CoT as a whole on tiny federations: what is taught, what each variant learns, what is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lada.methods.socratic_cot as method
from lada.config import SERVER
from lada.generation import Generated, generate
from lada.imitation import imitate
from lada.language_model import LanguageModel
from lada.methods.socratic_cot import Config, choose_texts, dialogue_examples
from lada.party import Party
from lada.prompts import prompt
from lada.records import Response, SampleLog, read_jsonl
from lada.rundir import RunDir, Stage
from lada.socratic import as_dialogue, parse_trace, pieces
from tests.federation import commit, drive, metrics
from tests.federation import make as make_run
from tests.one_party import party
from tests.pauses import check_same_bytes
from tests.smallest_models import SETTINGS
from tests.test_socratic import REAL, TRACE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("smallest_lab")]
CLIENTS = ("client-1", "client-2", "client-3")
SHORT = ("method.question_tokens=12", "method.solution_tokens=24", "method.max_steps=2")


def make(runs: Path, *settings: str, **named: str) -> RunDir:
    every = (*SETTINGS, *SHORT, "training.client.batch_size=4", *settings)
    return make_run(runs, *every, small=False, method="socratic_cot", **named)


@pytest.fixture(scope="module", params=["1", "3"])
def whole(request: pytest.FixtureRequest, smallest_lab: Path, tmp_path_factory: Any) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("socratic"), scenario=request.param))


@pytest.fixture(scope="module")
def unified(smallest_lab: Path, tmp_path_factory: Any) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("unified"), "method.variant=unified"))


# -- what is taught


def said(text: str, *, finished: bool = True) -> Generated:
    return Generated(text, 9, finished, -0.5)


def choose(server: Party, plain: list[str | None], traces: list[Generated], **options: Any) -> Any:
    """Texts that are taught on the first questions, and the outcomes."""
    server.options = Config(**options)
    ids = list(server.public)[: len(traces)]
    own = {name: Response(id=name, text=text) for name, text in zip(ids, plain, strict=True) if text}
    found, outcomes = choose_texts(server, server.open_model(), own, dict(zip(ids, traces, strict=True)))
    by_id = {text.id: text.text for text in found}
    return [by_id.get(name) for name in ids], {k: n for k, n in outcomes.items() if n}


@pytest.fixture()
def server(tmp_path: Path) -> Party:
    return party(make(tmp_path, scenario="1"), SERVER, "r00-decompose")


PLAIN_C, PLAIN_B = "12 + 5 = 17. 17 - 3 = 14 C.\nThe answer is C", "17 B.\nThe answer is B"


def test_a_trace_is_kept_where_both_answers_agree_and_dropped_where_not(server: Party) -> None:
    plain, traces = [PLAIN_C, PLAIN_B, "who knows", None], [said(TRACE)] * 4
    taught, outcomes = choose(server, plain, traces)
    assert taught == [TRACE, None, None, None] and outcomes == {"kept": 1, "disagreed": 3}
    taught, outcomes = choose(server, plain, traces, agreement=False)
    assert taught == [TRACE] * 4 and outcomes == {"kept": 4}


def test_what_is_not_well_formed_falls_back_to_the_plain_text_and_is_counted(server: Party) -> None:
    one = "Q1: 12 + 5 - 3? A1: 14 C.\nThe answer is C"
    traces = [said("hm"), said(TRACE, finished=False), said(one), said("hm")]
    taught, outcomes = choose(server, [PLAIN_C, PLAIN_B, PLAIN_C, None], traces)
    assert taught == [PLAIN_C, PLAIN_B, PLAIN_C, None]
    assert outcomes == {"fallback": 3, "no_text": 1}


@pytest.mark.parametrize(
    ("option", "value"), [("min_steps", 3), ("max_steps", 1), ("question_tokens", 6), ("solution_tokens", 9)]
)
def test_every_limit_of_a_trace_counts(option: str, value: int, server: Party) -> None:
    base = {"min_steps": 1}
    assert choose(server, [PLAIN_C], [said(TRACE)], **base)[1] == {"kept": 1}
    assert choose(server, [PLAIN_C], [said(TRACE)], **(base | {option: value}))[1] == {"fallback": 1}
    assert choose(server, [PLAIN_C], [said(TRACE)], question_tokens=7, solution_tokens=21)[1] == {"kept": 1}


def test_a_real_models_trace_is_taught_in_one_form(tmp_path: Path) -> None:
    """The plain template of the paper tier."""
    plain = party(make(tmp_path, "template=plain", scenario="1"), SERVER, "r00-decompose")
    taught, outcomes = choose(plain, ["so (B)\nThe answer is B"], [said(REAL)])
    assert outcomes == {"kept": 1}
    assert taught[0].startswith("Q1: How many apples does Ann buy in total? A1: She buys 3 bags")
    assert parse_trace(taught[0]) == parse_trace(REAL)


@pytest.mark.parametrize("template", ["lab", "plain"])
@pytest.mark.parametrize("shots", [0, 1])
def test_the_llm_is_asked_at_the_cue_without_an_example(
    shots: int, template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def watched(model: LanguageModel, prompts: list[str], *rest: Any, **named: Any) -> list[Generated]:
        asked.extend(prompts)
        return generate(model, prompts, *rest, **named)

    monkeypatch.setattr(method, "generate", watched)
    owner = party(make(tmp_path, f"shots={shots}", f"template={template}"), SERVER, "r00-decompose")
    method.decompose(owner)
    assert asked == [prompt(q, template=template, cue="steps") for q in owner.public.values()]


# -- what the roles learn


def slow_dialogue_loss(owner: Party, model: LanguageModel, texts: dict[str, str]) -> float:
    """Mean over questions of -log p(all said | what precedes it) per token said, one pass a piece."""
    found = []
    for name, text in texts.items():
        question, total, tokens = owner.public[name], 0.0, 0
        for piece in pieces(as_dialogue(question, text), owner.config.template):
            before = model.prompt_ids(owner.prompt(question) + piece.context)
            answer = model.response_ids(piece.said)
            log_probs = model.network(torch.tensor([before + answer])).logits[0].double().log_softmax(1)
            for row, token in zip(log_probs[len(before) - 1 : -1], answer, strict=True):
                total -= row[token].item()
            tokens += len(answer)
        found.append(total / tokens)
    return sum(found) / len(found)


def test_the_unified_objective_is_asker_plus_solver_per_token_of_the_dialogue(tmp_path: Path) -> None:
    owner = party(make(tmp_path, "method.variant=unified"), "client-1", "r01-learn")
    model, ids = owner.open_model(), list(owner.public)
    texts = dict(zip(ids[:3], (TRACE, PLAIN_B, TRACE.replace("17", "71")), strict=True))
    examples = dialogue_examples(owner, model, {k: Response(id=k, text=t) for k, t in texts.items()})
    assert len(examples) == 4 + 2 + 4
    expected = slow_dialogue_loss(owner, model, texts)
    options = owner.training("client").model_copy(update={"batch_size": 99, "epochs": 1})
    assert imitate(owner, model, examples, options)["train_loss_first"] == pytest.approx(expected, rel=1e-5)
    assert slow_dialogue_loss(owner, model, texts) < expected


def test_tags_and_the_other_roles_words_are_context_never_target(tmp_path: Path) -> None:
    owner = party(make(tmp_path, "method.variant=unified"), "client-1", "r01-learn")
    model, name = owner.open_model(), next(iter(owner.public))
    examples = dialogue_examples(owner, model, {name: Response(id=name, text=TRACE)})
    asked = owner.prompt(owner.public[name])
    learnt = [model.text(example.responses[0][:-1]) for example in examples]
    assert learnt == [" 12 + 5?", " 17.", " 17 - 3?", " 14 C.\nThe answer is C"]
    assert all(example.responses[0][-1] == model.eos_id for example in examples)
    assert model.text(examples[3].prompt) == f"{asked} Q1: 12 + 5? A1: 17. Q2: 17 - 3? A2:"


def test_a_step_of_either_variant_learns_as_many_questions(whole: RunDir, unified: RunDir) -> None:
    for run in (whole, unified):
        found = metrics(run)
        steps, texts = found[1, "client-1", "optimiser_steps"], found[1, "client-1", "trained_samples"]
        assert texts > 4 and steps == 3 * -(-texts // 4)


# -- whole runs


def sent(run: RunDir) -> dict[str, Response]:
    path = run.root / "exchange" / SERVER / "all" / "r00-decompose" / "responses.jsonl"
    return {record.id: record for record in read_jsonl(Response, path)}


def test_every_client_learns_every_text_in_every_round_and_is_measured(whole: RunDir) -> None:
    found, texts = metrics(whole), sent(whole)
    assert texts
    for number in (1, 2):
        for name in CLIENTS:
            logs = read_jsonl(SampleLog, commit(whole, number, "learn", name) / "samples.jsonl")
            assert {log.id for log in logs} == set(texts)
            assert 0 <= found[number, name, "accuracy"] <= 1


def test_the_outcomes_are_shares_of_the_public_set(whole: RunDir) -> None:
    found = metrics(whole)
    names = ("kept", "disagreed", "fallback", "no_text")
    shares = {name: found[0, SERVER, f"socratic/{name}"] for name in names}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert (shares["kept"] + shares["fallback"]) * 16 == len(sent(whole))


def test_texts_are_sent_once_and_nothing_else_but_adapters(whole: RunDir) -> None:
    """Baselines, sections 7c and 10: down n * (b + 4), once, up nothing, the LLM untouched."""
    found, texts = metrics(whole), sent(whole)
    folder = whole.root / "exchange" / SERVER / "all" / "r00-decompose"
    metered = {key: value for key, value in found.items() if "bytes_sent/" in key[2]}
    down = metered.pop((0, SERVER, "bytes_sent/decompose/all/responses"))
    assert down == (folder / "responses.jsonl").stat().st_size
    assert down >= sum(len(text.text.encode()) + 4 for text in texts.values())
    assert {key[2] for key in metered} == {"bytes_sent/learn/server/adapters"}
    assert not list((whole.root / "parties" / SERVER).rglob("model.safetensors"))


@pytest.mark.parametrize("variant", ["concat", "unified"])
def test_the_same_run_twice_gives_the_same_bytes(variant: str, tmp_path: Path) -> None:
    first, again = (drive(make(tmp_path / n, f"method.variant={variant}")) for n in ("a", "b"))
    assert first.metrics_csv.read_bytes() == again.metrics_csv.read_bytes()


def test_the_variant_changes_training_and_test(unified: RunDir, tmp_path: Path) -> None:
    concat = drive(make(tmp_path))
    one, other = metrics(concat), metrics(unified)
    for number in (1, 2):
        assert one[number, "client-1", "train_loss"] != other[number, "client-1", "train_loss"]
    lengths = [
        (commit(run, 1, "learn", "client-1") / "state" / "test_lengths.json").read_bytes()
        for run in (concat, unified)
    ]
    assert lengths[0] != lengths[1]


@pytest.mark.parametrize("variant", ["concat", "unified"])
def test_the_plain_template_runs_whole(variant: str, tmp_path: Path) -> None:
    run = drive(make(tmp_path, "template=plain", f"method.variant={variant}", "rounds=1"))
    assert 0 <= metrics(run)[1, "client-1", "accuracy"] <= 1


def test_the_dialogue_s_limits_reach_the_test(unified: RunDir, tmp_path: Path) -> None:
    """Random models never end a sub-question by themselves: each takes all the tokens that it may."""
    longer = drive(make(tmp_path, "method.variant=unified", "method.question_tokens=20", "rounds=1"))
    found = []
    for run in (unified, longer):
        path = commit(run, 1, "learn", "client-1") / "state" / "test_lengths.json"
        found.append(set(json.loads(path.read_text()).values()))
    assert found == [{12}, {20}]


@pytest.mark.parametrize(
    ("stage", "every", "inside"),
    [
        (Stage(0, "decompose", SERVER), 50, {"generate"}),
        (Stage(1, "learn", "client-1"), 3, {"fit", "generate"}),
    ],
    ids=["decompose", "learn"],
)
def test_a_paused_stage_commits_the_same_bytes(
    stage: Stage,
    every: int,
    inside: set[str],
    unified: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_same_bytes(unified, stage, tmp_path, monkeypatch, every=every, inside=inside)
