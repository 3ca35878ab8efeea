"""LaDa as a guest of FedKD and FedMKT: what a host keeps, what it loses, and that FedKD's is LaDa itself."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from lada.config import SERVER
from lada.errors import ConfigError
from lada.generation import generate
from lada.layers import CONFIGS, layers, read_yaml
from lada.method import describe_methods, load_method, method_names
from lada.plan import read_plan
from lada.plugin_options import HostOptions, LaDaOptions
from lada.records import Response, SampleId, SampleLog, read_jsonl
from lada.results import read_metrics
from lada.rundir import RunDir, Stage
from lada.runs import resolve_run
from tests.federation import commit, drive, metrics
from tests.federation import make as make_run
from tests.one_party import party
from tests.pauses import check_same_bytes
from tests.smallest_models import SETTINGS

pytestmark = pytest.mark.usefixtures("smallest_lab")
CLIENTS = ("client-1", "client-2", "client-3")
HOSTED = "method.plugin=lada"
HOSTS = ["fedkd", "fedmkt", "wasp"]


def make(runs: Path, *settings: str, method: str, scenario: str = "one-client") -> RunDir:
    """A run of the smallest models: about a second."""
    some = (*SETTINGS, "training.client.batch_size=2", *settings)
    return make_run(runs, *some, small=False, method=method, scenario=scenario)


def config(*settings: str, method: str = "fedkd") -> Any:
    found = layers(scenario="1", method=method, dataset="lab-math", size="tiny", settings=settings)
    return resolve_run(found)


# -- options


def test_these_methods_host_and_name_only_options_that_exist() -> None:
    classes = {name: importlib.import_module(f"lada.methods.{name}").Config for name in method_names()}
    assert [name for name, one in classes.items() if issubclass(one, HostOptions)] == HOSTS
    for name in HOSTS:
        assert set(classes[name].KEPT) <= set(classes[name].model_fields)
        assert set(classes[name].IDLE) <= set(LaDaOptions.model_fields)


@pytest.mark.parametrize("method", HOSTS)
def test_a_guests_options_are_all_in_run_yaml_and_a_host_alone_has_none(method: str) -> None:
    assert config(method=method).method["lada"] is None
    found = config(HOSTED, "method.lada.beta=0.2", method=method).method["lada"]
    assert found == {**LaDaOptions().model_dump(mode="json"), "beta": 0.2}


def test_the_shipped_values_of_lada_are_the_defaults_of_a_guest() -> None:
    given = read_yaml(CONFIGS / "methods" / "lada.yaml")
    assert set(given) == {"method"}
    assert load_method({"name": "lada", **given["method"]}).options == LaDaOptions()


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("fedkd", ("method.lada.beta=0.2",), r"lada\.\* has no effect with plugin none"),
        ("fedkd", ("method.lada.select.mode=oracle",), r"lada\.\* has no effect with plugin none"),
        ("fedkd", (HOSTED, "method.lada.bta=1"), "'method.lada.bta'; did you mean 'beta'.*drop_ties"),
        ("fedkd", (HOSTED, "method.lada.reward.profil=paired"), "did you mean 'profile'.*batch_pairing"),
        ("fedkd", ("method.plugin=ladda",), "'none' or 'lada'"),
        ("fedkd", (HOSTED, "method.schedule=sequential"), "schedule: no effect with plugin lada"),
        ("fedkd", (HOSTED, "method.server_update=none"), "server_update: no effect"),
        ("fedkd", (HOSTED, "method.drop_unparsed=true"), "drop_unparsed: no effect"),
        ("fedmkt", (HOSTED, "method.mode=seq", "method.top_k=8"), "mode, top_k: no effect"),
        ("fedmkt", (HOSTED, "method.label_source=oracle"), "label_source: no effect"),
        ("fedmkt", (HOSTED, "method.server_update=none"), "server_update: no effect"),
        ("fedmkt", (HOSTED, "method.lada.schedule=server_last"), r"lada\.schedule: no effect"),
        ("wasp", (HOSTED, "method.server_update=none"), "server_update: no effect"),
        ("wasp", (HOSTED, "method.top_share=0.9"), "top_share: no effect"),
        ("wasp", (HOSTED, "method.lada.schedule=server_last"), r"lada\.schedule: no effect"),
        ("wasp", (HOSTED, "method.noise=secret"), "texts leave a client"),
        ("wasp", (HOSTED, "method.lada.select.mode=oracle"), "this run's questions are its own"),
        (
            "wasp",
            (HOSTED, "method.lada.select.mode=random", "method.lada.select.replay=other"),
            "this run's questions are its own",
        ),
        ("standalone", (HOSTED,), "unknown key 'method.plugin'"),
    ],
)
def test_what_would_do_nothing_is_refused(method: str, settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(*settings, method=method)


def test_options_of_a_host_that_hold_beside_the_guest_are_taken() -> None:
    found = config(HOSTED, "method.boosting=false", "method.depth=4", "method.steps=2", method="wasp")
    assert (found.method["boosting"], found.method["depth"], found.method["steps"]) == (False, 4, 2)


def test_results_name_host_and_guest() -> None:
    assert config(HOSTED).method_label == "fedkd+lada"
    assert config(HOSTED).run_id.startswith("1-fedkd-lada-lab-math-")
    assert config().method_label == "fedkd"
    assert config(HOSTED).run_id != config(HOSTED, "method.lada.beta=0.2").run_id


def test_a_guests_oracle_is_named_and_opens_the_answers_and_no_other_run_does() -> None:
    oracle = config(HOSTED, "method.lada.select.mode=oracle")
    assert oracle.opens_answers and oracle.method_label == "fedkd+lada-oracle"
    assert not config(HOSTED).opens_answers and not config().opens_answers
    again = config(HOSTED, "method.lada.select.mode=random", "method.lada.select.replay=runs/x")
    assert again.replayed == "runs/x" and config(HOSTED).replayed is None


def test_a_host_prints_its_guest_in_one_line() -> None:
    lines = describe_methods()
    assert not [line for line in lines if "method.lada." in line]
    assert sum("method.lada=None  options of LaDa as" in line for line in lines) == len(HOSTS)
    assert sum("method.plugin=none  ``lada`` puts" in line for line in lines) == len(HOSTS)


# -- FedKD


def files(run: RunDir) -> dict[str, bytes]:
    """All that was committed and published, but manifests: these name the run."""
    return {
        path.relative_to(run.root).as_posix(): path.read_bytes()
        for top in ("parties", "exchange")
        for path in (run.root / top).rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("schedule=server_last", "reward.profile=paired", "nll_weight=0.5"),
        ("use_filter=false", "reasoning_distillation=false", "server_weights=none"),
    ],
    ids=["defaults", "options", "ablations"],
)
def test_fedkd_with_lada_is_lada_bit_for_bit(settings: tuple[str, ...], tmp_path: Path) -> None:
    own = [f"method.{one}" for one in settings]
    guests = [f"method.lada.{one}" for one in settings]
    lada = drive(make(tmp_path, *own, method="lada", scenario="1"))
    hosted = drive(make(tmp_path, HOSTED, *guests, method="fedkd", scenario="1"))
    assert metrics(hosted) == metrics(lada)
    assert files(hosted) == files(lada)
    assert sum(name.endswith("predictions.jsonl") for name in files(hosted)) == 3 * 4  # rounds, parties
    plans = [[(one.name, one.roles, one.once) for one in read_plan(run).steps] for run in (lada, hosted)]
    assert plans[0] == plans[1]
    assert {row["method"] for row in read_metrics(hosted.metrics_csv)} == {"fedkd+lada"}


@pytest.mark.slow
def test_fedkd_with_lada_is_not_fedkd(tmp_path: Path) -> None:
    alone = drive(make(tmp_path, method="fedkd"))
    hosted = drive(make(tmp_path, HOSTED, "method.lada.cold.clusters=2", method="fedkd"))
    for name in (SERVER, "client-1"):
        assert model_bytes(alone, 1, "learn", name) != model_bytes(hosted, 1, "learn", name)
    whole = metrics(alone)[1, SERVER, "bytes_sent/respond/all/responses"]
    assert metrics(hosted)[1, SERVER, "bytes_sent/respond/client-1/responses"] < whole


@pytest.mark.slow
def test_as_many_as_a_hosted_filter_selected_can_be_drawn_at_random(tmp_path: Path) -> None:
    some = ("method.lada.cold.clusters=2", "method.lada.select.max_frac=0.5")
    first = drive(make(tmp_path, HOSTED, *some, method="fedkd"))
    again = (f"method.lada.select.replay={first.root.name}", "method.lada.select.mode=random")
    second = drive(make(tmp_path, HOSTED, *again, method="fedkd"))
    for name, partner in ((SERVER, "client-1"), ("client-1", SERVER)):
        for stage in ("r00-prepare", "r01-learn"):
            ids = [asked(run, name, partner, stage) for run in (first, second)]
            assert len(ids[0]) == len(ids[1]) and ids[0] != ids[1]
    alone = drive(make(tmp_path, method="fedkd"))
    again = (f"method.lada.select.replay={alone.root.name}", "method.lada.select.mode=random")
    with pytest.raises(ConfigError, match="run of fedkd, which selects nothing"):
        make(tmp_path, HOSTED, *again, method="fedkd")


def asked(run: RunDir, sender: str, recipient: str, stage: str) -> list[str]:
    path = run.root / "exchange" / sender / recipient / stage / "ids.jsonl"
    return [record.id for record in read_jsonl(SampleId, path)]


# -- FedMKT


@pytest.fixture(scope="module")
def fedmkt(smallest_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("fedmkt"), HOSTED, method="fedmkt", scenario="1"))


@pytest.fixture(scope="module")
def reference(smallest_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("reference"), HOSTED, method="fedmkt"))


def model_bytes(run: RunDir, number: int, step: str, name: str) -> bytes:
    return (commit(run, number, step, name) / "state" / "model.safetensors").read_bytes()


def texts(run: RunDir, sender: str, recipient: str, stage: str) -> dict[str, str]:
    path = run.root / "exchange" / sender / recipient / stage / "responses.jsonl"
    return {record.id: record.text for record in read_jsonl(Response, path)}


@pytest.mark.slow
def test_fedmkts_order_is_kept(fedmkt: RunDir) -> None:
    """4(a) E: private training and upload, the server learns and answers, the clients learn."""
    steps = [(step.name, step.once, step.roles) for step in read_plan(fedmkt).steps]
    assert steps == [
        ("prepare", True, ("server", "client")),
        ("respond", False, ("server", "client")),
        ("teach", False, ("server",)),
        ("answer", False, ("server",)),
        ("learn", False, ("client",)),
    ]
    readers = ((SERVER, "teach"), (SERVER, "answer"), ("client-1", "learn"))
    inputs = [list(manifest_inputs(fedmkt, name, step)) for name, step in readers]
    assert inputs[0] == [f"{client}/server/r02-respond" for client in CLIENTS]
    assert inputs[1] == [f"{client}/server/r01-learn" for client in CLIENTS]
    assert inputs[2] == ["server/client-1/r02-answer"]


def manifest_inputs(run: RunDir, name: str, step: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((commit(run, 2, step, name) / "manifest.json").read_text())["inputs"]
    return found


@pytest.mark.slow
def test_clients_train_privately_every_round_before_they_answer(fedmkt: RunDir) -> None:
    """Round 1's private training is `prepare`'s, as without the guest."""
    found = metrics(fedmkt)
    for name in CLIENTS:
        assert not (commit(fedmkt, 1, "respond", name) / "state" / "model.safetensors").exists()
        assert (found[1, name, "private_steps"], found[2, name, "private_steps"]) == (0, 1)
        assert model_bytes(fedmkt, 2, "respond", name) != model_bytes(fedmkt, 1, "learn", name)
        sent = texts(fedmkt, name, SERVER, "r02-respond")
        assert sent == regenerated(fedmkt, name, "r02-respond", "r02-learn", sorted(sent))
    assert not (commit(fedmkt, 2, "respond", SERVER) / "state" / "model.safetensors").exists()


@pytest.mark.slow
def test_clients_are_answered_by_the_server_that_has_learnt(fedmkt: RunDir) -> None:
    for client in CLIENTS:
        assert not (fedmkt.root / "exchange" / SERVER / client / "r02-respond").exists()
        sent = texts(fedmkt, SERVER, client, "r02-answer")
        assert set(sent) <= set(asked(fedmkt, client, SERVER, "r01-learn"))
        assert sent == regenerated(fedmkt, SERVER, "r02-answer", "r02-answer", sorted(sent))
    assert model_bytes(fedmkt, 2, "teach", SERVER) != model_bytes(fedmkt, 1, "teach", SERVER)


def regenerated(run: RunDir, name: str, stage: str, after: str, ids: list[str]) -> dict[str, str]:
    """Greedy texts would not depend on their neighbours; sampled ones are drawn for all ids of the stage."""
    one, model = party(run, name, stage), party(run, name, after).open_model()
    number, step = int(stage[1:3]), stage[4:]
    kept = read_jsonl(Response, commit(run, number, step, name) / "state" / "own_responses.jsonl")
    wanted = wanted_of(run, name, stage)
    prompts = [one.prompt(one.public[name]) for name in wanted]
    drawn = generate(model, prompts, one.config.generation, seed=one.seed("answers"))
    found = {name: text.text for name, text in zip(wanted, drawn, strict=True) if text.finished}
    assert found == {record.id: record.text for record in kept}
    return {name: found[name] for name in ids}


def wanted_of(run: RunDir, name: str, stage: str) -> list[str]:
    """What a party answers in round 2: what was asked of it, and in `respond` what it selected itself."""
    others = CLIENTS if name == SERVER else (SERVER,)
    before = {SERVER: "r01-teach"}
    found = {one for other in others for one in asked(run, other, name, before.get(other, "r01-learn"))}
    if stage.endswith("respond"):
        found |= {one for other in others for one in asked(run, name, other, before.get(name, "r01-learn"))}
    return sorted(found)


@pytest.mark.slow
def test_the_filters_choose_and_both_sides_learn_from_pairs(fedmkt: RunDir) -> None:
    found = metrics(fedmkt)
    for number, by in ((1, "prototypes"), (2, "filter")):
        chosen_by = set()
        for name, step in ((SERVER, "teach"), *((client, "learn") for client in CLIENTS)):
            logs = read_jsonl(SampleLog, commit(fedmkt, number, step, name) / "samples.jsonl")
            chosen_by |= {log.selected_by for log in logs}
            assert len(logs) >= found[number, name, "trained_samples"]
            assert 0 <= found[number, name, "accuracy"] <= 1
        assert chosen_by == {by}
    assert not list((fedmkt.root / "exchange").rglob("logits.safetensors"))


@pytest.mark.slow
def test_bytes_are_texts_and_ids_as_fedkd_with_lada_sends_them(fedmkt: RunDir) -> None:
    """Section 10: up 4 rho n ids and texts on rho_0 n, down texts on rho n and ids of rho_0 n."""
    out = [path for path in (fedmkt.root / "exchange").rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_size for path in out if path.name != "manifest.json")
    metered = {key: value for key, value in metrics(fedmkt).items() if "bytes_sent/" in key[2]}
    assert sum(metered.values()) == on_disk > 0
    kinds = {key[2].rsplit("/", 1)[1] for key in metered}
    assert kinds == {"ids", "responses", "adapters", "rewards"}
    for client in CLIENTS:
        up, down = texts(fedmkt, client, SERVER, "r02-respond"), texts(fedmkt, SERVER, client, "r02-answer")
        ids = asked(fedmkt, client, SERVER, "r01-learn"), asked(fedmkt, SERVER, client, "r01-teach")
        assert set(up) <= set(ids[1]) and set(down) <= set(ids[0])


@pytest.mark.slow
def test_fedmkt_with_lada_twice_gives_the_same_bytes(reference: RunDir, tmp_path: Path) -> None:
    again = drive(make(tmp_path, HOSTED, method="fedmkt"))
    assert again.metrics_csv.read_bytes() == reference.metrics_csv.read_bytes()
    assert files(again) == files(reference)


@pytest.mark.slow
def test_fedmkt_with_lada_is_neither_fedmkt_nor_lada(reference: RunDir, tmp_path: Path) -> None:
    alone = drive(make(tmp_path, "method.label_source=oracle", method="fedmkt"))
    lada = drive(make(tmp_path, "method.schedule=server_last", method="lada"))
    hosted = model_bytes(reference, 2, "learn", "client-1")
    assert hosted != model_bytes(alone, 2, "learn", "client-1")
    assert hosted != model_bytes(lada, 2, "learn", "client-1")
    losses = [metrics(run)[2, "client-1", "train_loss"] for run in (reference, lada)]
    assert losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "switch",
    [
        "method.lada.use_filter=false",
        "method.lada.reasoning_distillation=false",
        "method.lada.beta=0.5",
        "method.lada.reward.profile=likelihood",
        "method.lada.select.mode=random",
        "method.lada.select.mode=oracle",
        "training.local.decay=0.01",
    ],
)
def test_every_switch_of_the_guest_changes_a_number(switch: str, reference: RunDir, tmp_path: Path) -> None:
    names = ("train_loss", "late_round_gain", "filter/", "responses", "trained_samples", "grad_norm")
    values = [
        {key: value for key, value in metrics(run).items() if key[2].startswith(names)}
        for run in (reference, drive(make(tmp_path, HOSTED, switch, method="fedmkt")))
    ]
    assert values[0] != values[1]


@pytest.mark.slow
def test_sample_weights_of_the_guest_change_the_server(fedmkt: RunDir, tmp_path: Path) -> None:
    one_round = (HOSTED, "rounds=1", "method.lada.server_weights=none")
    other = drive(make(tmp_path, *one_round, method="fedmkt", scenario="1"))
    assert model_bytes(other, 1, "teach", SERVER) != model_bytes(fedmkt, 1, "teach", SERVER)


@pytest.mark.slow
def test_a_paused_answer_after_private_training_commits_the_same_bytes(
    reference: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(2, "respond", "client-1")
    check_same_bytes(reference, stage, tmp_path, monkeypatch, every=4, inside={"generate"})
