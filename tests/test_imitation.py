"""Cross-entropy on other parties' texts: the objective against a slow obvious one, and the host's log."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lada.config import TrainOptions
from lada.imitation import imitate, text_examples, text_logs
from lada.language_model import LanguageModel
from lada.party import Party
from lada.prompts import join
from lada.records import Response
from tests.federation import make
from tests.one_party import party
from tests.smallest_models import SETTINGS

pytestmark = pytest.mark.usefixtures("smallest_lab")


@pytest.fixture()
def server(tmp_path: Path) -> Party:
    run = make(tmp_path, *SETTINGS, small=False, method="fedkd", scenario="1")
    return party(run, "server", "r01-learn")


def given(server: Party) -> dict[str, dict[str, Response]]:
    """Three clients' texts on samples that overlap in part, and one client with none."""
    ids = list(server.public)
    texts = ("2 + 2 = 4 B.\nThe answer is B", "so it is\nThe answer is A", "no idea")
    return {
        "client-1": {name: Response(id=name, text=texts[0]) for name in ids[:3]},
        "client-2": {name: Response(id=name, text=texts[1]) for name in ids[2:4]},
        "client-3": {ids[0]: Response(id=ids[0], text=texts[2])},
    }


def slow_objective(server: Party, model: LanguageModel, texts: dict[str, dict[str, Response]]) -> float:
    """(1/K) * sum over k of the mean over its texts of -mean log p(token), one full forward pass a text."""
    means = []
    for mine in texts.values():
        losses = []
        for name, text in mine.items():
            prompt = model.prompt_ids(server.prompt(server.public[name]))
            response = model.response_ids(join(text.text, server.config.template))
            logits = model.network(torch.tensor([prompt + response])).logits[0].double()
            log_probs = logits.log_softmax(1)[len(prompt) - 1 : -1]
            losses.append(-sum(row[token] for row, token in zip(log_probs, response, strict=True)).item())
            losses[-1] /= len(response)
        means.append(sum(losses) / len(losses))
    return sum(means) / len(means)


def test_the_objective_is_the_mean_over_partners_of_each_ones_mean(server: Party) -> None:
    model, texts = server.open_model(), given(server)
    expected = slow_objective(server, model, texts)
    examples = text_examples(server, model, texts)
    assert [example.id for example in examples] == list(server.public)[:4]
    whole = TrainOptions(learning_rate=1e-3, batch_size=99, epochs=1)
    metrics = imitate(server, model, examples, whole)
    assert metrics["train_loss_first"] == pytest.approx(expected, rel=1e-5)
    assert slow_objective(server, model, texts) < expected


def test_every_prompt_and_every_text_is_forwarded_once(server: Party) -> None:
    model, texts = server.open_model(), given(server)
    examples = text_examples(server, model, texts)
    assert sum(len(example.responses) for example in examples) == 6
    for example in examples:
        assert list(example.prompt) == model.prompt_ids(server.prompt(server.public[example.id]))
        assert {term.partner for term in example.terms} == {p for p, t in texts.items() if example.id in t}
        assert all(term.rejected is None for term in example.terms)


def test_a_partner_without_texts_does_not_change_the_others_share(server: Party) -> None:
    model, texts = server.open_model(), given(server)
    without = text_examples(server, model, {**texts, "client-3": {}})
    total = dict.fromkeys(texts, 0.0)
    for example in without:
        for term in example.terms:
            total[term.partner] += term.weight / len(without)
    assert total == pytest.approx({"client-1": 1 / 3, "client-2": 1 / 3, "client-3": 0.0})


def test_the_rate_falls_from_round_to_round(server: Party) -> None:
    states = []
    for number, decay in ((1, 0.5), (3, 0.5), (3, 1.0)):
        model = server.open_model()
        server.round = number
        options = TrainOptions(learning_rate=1e-3, batch_size=99, decay=decay)
        imitate(server, model, text_examples(server, model, given(server)), options)
        before = server.open_model().state()
        states.append(sum(float((v - before[k]).abs().sum()) for k, v in model.state().items()))
    assert states[1] < 0.5 * states[0] and states[2] == pytest.approx(states[0], rel=0.05)


def test_the_log_says_which_letter_was_taught_and_what_the_own_one_was(server: Party) -> None:
    texts = given(server)
    names = list(server.public)
    own = {names[0]: texts["client-1"][names[0]], names[1]: Response(id=names[1], text="The answer is D")}
    logs = {(log.partner, log.id): log for log in text_logs(server, texts, "all", own=own)}
    assert len(logs) == 6 and {log.selected_by for log in logs.values()} == {"all"}
    first, second = logs["client-1", names[0]], logs["client-1", names[1]]
    assert (first.chosen, first.rejected, first.same_text) == ("B", "B", True)
    assert (second.chosen, second.rejected, second.same_text) == ("B", "D", False)
    assert logs["client-2", names[3]].rejected is None
