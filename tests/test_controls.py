"""Controls of the selection: an oracle, named and never a default; and as many as another run chose."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lada.errors import ChangedError, ConfigError
from lada.layers import layers, resolve
from lada.method import method_names
from lada.plan import read_plan
from lada.records import SampleId, SampleLog, read_jsonl
from lada.replay import find_replayed
from lada.results import read_metrics
from lada.rundir import RunDir, Stage
from lada.runs import check_run, resolve_run
from lada.selection.allocation import Allocation, AllocationOptions
from lada.selection.select import SelectOptions, select
from lada.stage import run_stage
from tests.federation import Quiet, commit, drive, metrics
from tests.federation import make as make_run
from tests.one_party import party
from tests.smallest_models import SETTINGS
from tests.test_allocation import IDS, features

ORACLE = "method.select.mode=oracle"
ZERO = dict.fromkeys(IDS, 0.0)


def config(*settings: str, method: str = "lada"):
    return resolve_run(
        layers(scenario="1", method=method, dataset="lab-math", size="tiny", settings=settings)
    )


# -- the rule


def test_the_oracle_asks_for_everything_and_keeps_a_share_of_what_is_right() -> None:
    options = SelectOptions(mode="oracle", share=0.2)
    assert select(ZERO, options, seed=1) == IDS
    right = set(IDS[:20])
    kept = select(ZERO, options, seed=1, right=right)
    assert len(kept) == 8 and set(kept) < right
    assert kept == select(dict(reversed(ZERO.items())), options, seed=1, right=right)
    assert kept != select(ZERO, options, seed=2, right=right)
    assert select(ZERO, options, seed=1, right=IDS[:3]) == IDS[:3]
    assert select(ZERO, options, seed=1, right=()) == []


def test_the_oracle_takes_fresh_ids_first() -> None:
    options = SelectOptions(mode="oracle", share=0.2, fresh=True)
    right, used = IDS[:20], IDS[:15]
    assert set(select(ZERO, options, seed=1, right=right, used=used)) == set(IDS[15:20])


@pytest.mark.parametrize("mode", ["random", "oracle"])
def test_a_count_replaces_the_share(mode: str) -> None:
    options = SelectOptions(mode=mode, share=0.2)
    assert len(select(ZERO, options, seed=1, count=5, right=IDS)) == 5
    assert select(ZERO, options, seed=1, count=99, right=IDS) == IDS


def test_narrowing_keeps_the_rows_of_what_is_left() -> None:
    options = AllocationOptions.model_validate(
        {"select": {"mode": "oracle"}, "filter": {"width": 16, "blocks": 2}}
    )
    allocation = Allocation(IDS, options, 3, "server")
    whole = allocation.choose(features(), round=1)
    assert whole.by == "oracle" and whole.ids == IDS and not allocation.used
    kept = allocation.narrow(IDS[10:30], round=1, count=4)
    assert len(kept.ids) == 4 and set(kept.ids) == allocation.used <= set(IDS[10:30])
    for name in kept.ids:
        assert (kept.features[kept.row(name)] == whole.features[whole.row(name)]).all()
    assert allocation.narrow((), round=1).ids == []


@pytest.mark.parametrize("settings", [["method.select.replay=x"], ["method.use_filter=false", ORACLE]])
def test_options_that_contradict_each_other_are_refused(settings: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"replay needs mode random|use_filter false selects all"):
        config(*settings)


# -- the name


def test_a_run_that_opens_the_answers_is_called_so_everywhere() -> None:
    plain, opened = config(), config(ORACLE)
    assert not plain.opens_answers and "oracle" not in plain.run_id
    assert opened.opens_answers and opened.run_id.startswith("1-lada-oracle-lab-math-")
    assert opened.method_label == "lada-oracle" and plain.method_label == "lada"


@pytest.mark.parametrize("method", method_names())
def test_no_method_opens_the_answers_by_default(method: str) -> None:
    for size in ("tiny", "quick", "paper"):
        found = layers(scenario="1", method=method, dataset="lab-math", size=size)
        assert not resolve_run(found).opens_answers


def test_any_option_named_oracle_counts_and_a_folder_of_that_name_does_not() -> None:
    found = [*layers(scenario="1", method="lada", dataset="lab-math", size="tiny")]
    for method, expected in (
        ({"name": "other", "deep": {"source": "oracle"}}, True),
        ({"name": "oracle", "select": {"replay": "oracle"}}, False),
    ):
        assert resolve([*found, ("test", {"method": method})])[0].opens_answers is expected


# -- what a party can see


def make(runs: Path, *settings: str, **named: str) -> RunDir:
    return make_run(runs, *SETTINGS, "training.client.batch_size=2", *settings, small=False, **named)


@pytest.mark.usefixtures("smallest_lab")
def test_by_default_no_party_is_given_an_answer(tmp_path: Path) -> None:
    run = make(tmp_path)
    sealed = {item.id for item in run.sealed_items()}
    outside = [path for path in run.root.rglob("*.jsonl") if "sealed" not in path.parts]
    assert len(outside) >= 5
    for path in outside:
        rows = path.read_text(encoding="utf-8").splitlines()
        assert not [row for row in rows if '"answer"' in row and any(name in row for name in sealed)], path
    for name in ("server", "client-1"):
        with pytest.raises(ConfigError, match="must not read public answers"):
            _ = party(run, name).answers


@pytest.mark.usefixtures("smallest_lab")
def test_with_the_oracle_every_party_holds_the_answers(tmp_path: Path) -> None:
    run = make(tmp_path, ORACLE)
    expected = {item.id: item.answer for item in run.sealed_items()}
    assert party(run, "server").answers == party(run, "client-1").answers == expected


@pytest.mark.usefixtures("smallest_lab")
@pytest.mark.parametrize(
    ("old", "new", "legal"),
    [("mode: filter", "mode: oracle", False), ("mode: filter", "mode: random", True)],
)
def test_a_run_that_began_without_the_answers_cannot_be_amended_to_read_them(
    old: str, new: str, legal: bool, tmp_path: Path
) -> None:
    run = make(tmp_path)
    text = run.run_yaml.read_text()
    assert text.count(old) == 1
    run.run_yaml.write_text(text.replace(old, new))
    if legal:
        assert "mode" in check_run(run, amend=True)[0]
        return
    with pytest.raises(ChangedError, match=r'method.select.mode "filter" -> "oracle".*FRESH=1'):
        check_run(run, amend=True)


@pytest.mark.slow
@pytest.mark.usefixtures("smallest_lab")
@pytest.mark.parametrize("settings", [(), (ORACLE,)])
def test_no_stage_opens_the_sealed_folder(settings: tuple[str, ...], tmp_path: Path) -> None:
    """What a container would see: the host's folder is gone, and all stages run."""
    run = make(tmp_path, *settings)
    shutil.move(run.root / "sealed", tmp_path / "elsewhere")
    for group in read_plan(run).groups():
        for stage in group:
            assert run_stage(run, stage, attempt="01-a", reporter=Quiet(), log=lambda line: None)


@pytest.mark.slow
class TestRuns:
    @pytest.fixture(scope="class")
    def runs(self, smallest_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("controls")

    @pytest.fixture(scope="class")
    def filtered(self, runs: Path) -> RunDir:
        return drive(make(runs, "method.select.threshold=0.5001", scenario="1"))

    @pytest.fixture(scope="class")
    def oracle(self, runs: Path) -> RunDir:
        return drive(make(runs, ORACLE, "method.select.share=0.5", scenario="1"))

    def test_where_no_text_is_right_the_oracle_trains_on_nothing(self, oracle: RunDir) -> None:
        """The smallest models are never right; with models that answer: tests/test_lab_runs.py."""
        logs = read_jsonl(SampleLog, commit(oracle, 1, "learn", "client-1") / "samples.jsonl")
        assert logs == [] and metrics(oracle)[1, "client-1", "trained_samples"] == 0
        sent = read_jsonl(SampleId, commit(oracle, 0, "prepare", "client-1") / "public/server/ids.jsonl")
        assert len(sent) == 16

    def test_results_of_the_oracle_say_so(self, oracle: RunDir) -> None:
        assert {row["method"] for row in read_metrics(oracle.metrics_csv)} == {"lada-oracle"}

    def test_answers_never_travel(self, oracle: RunDir) -> None:
        for path in (oracle.root / "exchange").rglob("*.jsonl"):
            assert 'answer":' not in path.read_text(encoding="utf-8"), path

    @pytest.mark.parametrize("mode", ["random", "oracle"])
    def test_the_same_share_is_drawn_per_round_and_pair(
        self, mode: str, filtered: RunDir, runs: Path
    ) -> None:
        setting = (f"method.select.mode={mode}", f"method.select.replay={filtered.root.name}")
        drawn = drive(make(runs, *setting, scenario="1"))
        old, new = asked(filtered), asked(drawn)
        assert {len(ids) for ids in old.values()} != {len(next(iter(old.values())))}
        if mode == "random":
            assert {key: len(ids) for key, ids in new.items()} == {k: len(ids) for k, ids in old.items()}
            assert new != old
        for (number, name, partner), ids in old.items():
            found = metrics(drawn)[number, name, f"selected/{partner}"]
            assert found == len(ids) if mode == "random" else found <= len(ids)

    def test_another_folder_can_be_named_by_its_path(self, filtered: RunDir, tmp_path: Path) -> None:
        assert find_replayed(str(filtered.root), tmp_path).root == filtered.root

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (("seed=1",), "differs from this run in seed"),
            (("data.num_public=20", "shots=1"), "differs from this run in data, shots"),
            (("rounds=3",), "has 2 rounds, this run 3"),
        ],
    )
    def test_a_run_that_does_not_fit_is_refused(
        self, settings: tuple[str, ...], message: str, filtered: RunDir, runs: Path
    ) -> None:
        replay = f"method.select.replay={filtered.root.name}"
        with pytest.raises(ConfigError, match=message):
            make(runs, "method.select.mode=random", replay, *settings, scenario="1")

    def test_ids_of_an_oracle_are_not_replayed_under_another_name(self, oracle: RunDir, runs: Path) -> None:
        setting = ("method.select.mode=random", f"method.select.replay={oracle.root.name}")
        with pytest.raises(ConfigError, match="selected with the sealed answers"):
            make(runs, *setting, scenario="1")

    def test_a_run_that_is_not_there_not_finished_or_selects_nothing(
        self, filtered: RunDir, runs: Path
    ) -> None:
        with pytest.raises(ConfigError, match=filtered.root.name):
            make(runs, "method.select.mode=random", "method.select.replay=nowhere", scenario="1")
        begun = make(runs, "method.beta=0.3", scenario="1")
        alone = make(runs, scenario="1", method="standalone")
        for run, message in ((begun, "is not finished"), (alone, "which selects nothing")):
            with pytest.raises(ConfigError, match=message):
                replay = f"method.select.replay={run.root.name}"
                make(runs, "method.select.mode=random", replay, scenario="1")


def asked(run: RunDir) -> dict[tuple[int, str, str], set[str]]:
    """(round, party, partner) -> ids, from what lies in the exchange."""
    found = {}
    for path in (run.root / "exchange").glob("*/*/*/ids.jsonl"):
        sender, partner, stage = path.parts[-4:-1]
        number = Stage(int(stage[1:3]), stage[4:], sender).round + 1
        found[number, sender, partner] = {record.id for record in read_jsonl(SampleId, path)}
    return found
