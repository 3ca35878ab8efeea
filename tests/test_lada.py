"""LaDa as a whole on a tiny federation: who sees what, what each switch changes, restart, launchers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lada.config import SERVER, ExchangeOptions
from lada.plugin_options import LaDaOptions as Config
from lada.records import Response, Reward, SampleId, SampleLog, read_jsonl
from lada.rundir import RunDir
from tests.federation import commit, drive, metrics
from tests.federation import make as make_run
from tests.smallest_models import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("smallest_lab")]


def make(runs: Path, *settings: str, **named: str) -> RunDir:
    """A run of the smallest models: about a second."""
    return make_run(runs, *SETTINGS, "training.client.batch_size=2", *settings, small=False, **named)


@pytest.fixture(scope="module")
def three_clients(smallest_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("three"), scenario="1"))


@pytest.fixture(scope="module")
def reference(smallest_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("reference")))


def asked(run: RunDir, sender: str, recipient: str, stage: str) -> set[str]:
    path = run.root / "exchange" / sender / recipient / stage / "ids.jsonl"
    return {record.id for record in read_jsonl(SampleId, path)}


def test_every_party_has_a_finite_accuracy_in_every_round(three_clients: RunDir) -> None:
    found = metrics(three_clients)
    for number in range(3):
        for party in ("server", "client-1", "client-2", "client-3"):
            assert 0 <= found[number, party, "accuracy"] <= 1
            assert 0 <= found[number, party, "unparsed_rate"] <= 1
    assert (0, "client-1", "accuracy_base") in found


def test_a_party_receives_texts_on_what_it_asked_for_and_nothing_else(three_clients: RunDir) -> None:
    for number, before in ((1, "r00-prepare"), (2, "r01-learn")):
        for client in ("client-1", "client-2", "client-3"):
            for sender, recipient in ((client, SERVER), (SERVER, client)):
                stage = f"r{number:02d}-respond"
                path = three_clients.root / "exchange" / sender / recipient / stage / "responses.jsonl"
                sent = {record.id for record in read_jsonl(Response, path)}
                assert sent <= asked(three_clients, recipient, sender, before)
                dropped = metrics(three_clients)[number, sender, "responses_dropped"]
                assert len(asked(three_clients, recipient, sender, before) - sent) <= dropped


def test_the_first_selection_is_by_prototypes_and_the_second_by_the_filter(three_clients: RunDir) -> None:
    for number, by in ((1, "prototypes"), (2, "filter")):
        for party in ("client-1", SERVER):
            path = commit(three_clients, number, "learn", party) / "samples.jsonl"
            logs = read_jsonl(SampleLog, path)
            assert {log.selected_by for log in logs} <= {by}


def test_learn_publishes_rewards_and_the_weight_delta(three_clients: RunDir) -> None:
    folder = three_clients.root / "exchange" / "client-1" / SERVER / "r01-learn"
    assert all(0 < r.reward < 1 for r in read_jsonl(Reward, folder / "rewards.jsonl"))
    assert (folder / "adapter.safetensors").stat().st_size > 1000
    assert (three_clients.root / "exchange" / SERVER / "all" / "r01-learn" / "rewards.jsonl").is_file()


def test_metered_bytes_are_the_bytes_on_disk(three_clients: RunDir) -> None:
    """Property 18 and oracle 10: the byte account's sum is what lies in the exchange, kind by kind."""
    files = [path for path in (three_clients.root / "exchange").rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_size for path in files if path.name != "manifest.json")
    metered = {key: value for key, value in metrics(three_clients).items() if "bytes_sent/" in key[2]}
    assert sum(metered.values()) == on_disk > 0
    for kind, name in (("ids", "ids.jsonl"), ("responses", "responses.jsonl"), ("rewards", "rewards.jsonl")):
        expected = sum(path.stat().st_size for path in files if path.name == name)
        assert sum(value for key, value in metered.items() if key[2].endswith(f"/{kind}")) == expected


def test_no_metric_stands_twice_in_the_results(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "method.schedule=server_last"))
    lines = [line.rsplit(",", 1)[0] for line in run.metrics_csv.read_text().splitlines()]
    assert len(lines) == len(set(lines))


def test_publication_can_be_turned_off_and_large_deltas_become_a_hash(tmp_path: Path) -> None:
    quiet = make(tmp_path, "exchange.publish_adapters=false", "exchange.publish_rewards=false", "rounds=1")
    drive(quiet)
    assert not list((quiet.root / "exchange").rglob("adapter*"))
    assert not list((quiet.root / "exchange").rglob("rewards.jsonl"))
    capped = drive(make(tmp_path, "exchange.max_delta_bytes=100", "rounds=1"))
    hashes = list((capped.root / "exchange").rglob("adapter_hash.json"))
    assert len(hashes) == 2 and len(json.loads(hashes[0].read_text())["sha256"]) == 64
    small = drive(make(tmp_path, "exchange.max_delta_bytes=100", "lora.rank=4", "rounds=1"))
    adapters = list((small.root / "exchange").rglob("adapter.safetensors"))
    assert len(adapters) == 2 and adapters[0].stat().st_size > 100, "the limit is for weight deltas"
    assert ExchangeOptions().most_published(adapter=True) == ExchangeOptions().max_file_bytes


def test_the_same_run_twice_gives_the_same_bytes(reference: RunDir, tmp_path: Path) -> None:
    again = drive(make(tmp_path))
    assert again.metrics_csv.read_bytes() == reference.metrics_csv.read_bytes()


def test_another_seed_gives_other_numbers(reference: RunDir, tmp_path: Path) -> None:
    other = drive(make(tmp_path, "seed=1"))
    assert values(other) != values(reference)


def values(run: RunDir) -> dict[tuple[int, str, str], float]:
    """Numbers that a change of training or selection must show in."""
    names = ("late_round_gain", "train_loss", "chosen_log_ratio", "filter/", "responses", "trained_samples")
    return {key: value for key, value in metrics(run).items() if key[2].startswith(names)}


SWITCHES = [
    "method.reasoning_distillation=false",
    "method.use_filter=false",
    "method.beta=0.5",
    "method.nll_weight=1.0",
    "method.preference_weight=0.5",
    "method.length_norm=true",
    "method.label_smoothing=0.2",
    "method.entry_pass=false",
    "method.schedule=server_last",
    "method.reward.profile=paired",
    "method.reward.profile=likelihood",
    "method.reward.round_reward_weight=0.9",
    "method.reward.batch_pairing=same_batch",
    "method.filter.exploration_weight=1.0",
    "method.filter.online=true",
    "method.select.rule=topk",
    "method.select.mode=random",
    "method.cold.mode=medoid",
    "method.features.history=true",
    "method.features.encoder=tfidf",
    "training.client.decay=0.01",
    "training.client.max_steps=3",
    "lora.rank=4",
]


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_changes_a_number(switch: str, reference: RunDir, tmp_path: Path) -> None:
    run = drive(make(tmp_path, switch))
    assert values(run) != values(reference)


def test_the_senders_confidence_is_sent_and_seen_by_the_filter(reference: RunDir, tmp_path: Path) -> None:
    setting = ("exchange.publish_confidence=true", "method.features.sender_confidence=true")
    run = drive(make(tmp_path, *setting))
    path = run.root / "exchange" / SERVER / "client-1" / "r01-respond" / "responses.jsonl"
    texts = read_jsonl(Response, path)
    assert texts and all(text.confidence is not None and text.confidence <= 0 for text in texts)
    assert values(run) != values(reference)


def test_weights_change_only_the_server_and_only_where_pairs_overlap(
    three_clients: RunDir, tmp_path: Path
) -> None:
    """Property 16 and 21: round 1 of the clients is untouched by the server's weighting."""
    found = drive(make(tmp_path, "method.server_weights=none", "rounds=1", scenario="1"))
    base = drive(make(tmp_path, "method.server_weights=uniform", "rounds=1", scenario="1"))
    one, other = values(found), values(base)
    differing = {key[1] for key in one if one[key] != other[key]}
    assert differing == {SERVER}


def test_refinement_leaves_out_pairs_that_the_filter_does_not_want(tmp_path: Path) -> None:
    wide = ("method.select.min_frac=0.9", "method.select.threshold=0.9")
    without = metrics(drive(make(tmp_path, *wide)))
    refined = metrics(drive(make(tmp_path, *wide, "method.select.refine=true")))
    steps = (2, "client-1", "optimiser_steps")
    assert refined[steps] <= without[steps]  # a batch keeps its best pair, so no step is lost
    assert refined[2, "client-1", "train_loss"] != without[2, "client-1", "train_loss"]


def test_options_of_the_allocation_reach_it() -> None:
    config = Config(use_filter=False)
    assert config.allocation.select.mode == "all"
    assert Config().allocation.select.mode == "filter"
    assert Config(reasoning_distillation=False).loss.kind == "cross_entropy"
