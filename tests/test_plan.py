"""The plan: groups, barriers, what is pending. Pure functions of plan.json and a set of commits."""

from __future__ import annotations

import pytest

from lada.errors import PlanError
from lada.layers import layers
from lada.method import load_method, make_plan
from lada.plan import Plan, PlannedStep, read_plan
from lada.rundir import RunDir, Stage, parse_stage
from lada.runs import resolve_run
from tests.fake_runs import LEARN, PREPARE, RESPOND, make_run

PARTIES = ("server", "client-1", "client-2")


def plan(*steps: PlannedStep, rounds: int = 2) -> Plan:
    return Plan(run_id="run", method="m", rounds=rounds, parties=PARTIES, steps=steps)


ONLY_CLIENT = PlannedStep(name="train", roles=("client",))
ONLY_SERVER = PlannedStep(name="teach", roles=("server",))


@pytest.mark.parametrize(
    ("found", "groups"),
    [
        (
            plan(PREPARE, RESPOND, LEARN),
            ["0 prepare sc1c2", "1 respond sc1c2", "1 learn sc1c2", "2 respond sc1c2", "2 learn sc1c2"],
        ),
        (plan(PREPARE), ["0 prepare sc1c2"]),
        (plan(ONLY_CLIENT, ONLY_SERVER, rounds=1), ["1 train c1c2", "1 teach s"]),
        (plan(LEARN, PREPARE, rounds=1), ["0 prepare sc1c2", "1 learn sc1c2"]),
    ],
)
def test_groups_stand_in_the_order_of_the_run(found: Plan, groups: list[str]) -> None:
    short = {"server": "s", "client-1": "c1", "client-2": "c2"}
    shown = [
        f"{group[0].round} {group[0].step} {''.join(short[stage.party] for stage in group)}"
        for group in found.groups()
    ]
    assert shown == groups


ALL = [stage for group in plan(PREPARE, RESPOND, LEARN).groups() for stage in group]


@pytest.mark.parametrize(
    ("committed", "first"),
    [
        ([], ALL[0:3]),
        (ALL[0:1], ALL[1:3]),
        (ALL[0:3], ALL[3:6]),
        (ALL[0:2] + ALL[3:6], ALL[2:3]),  # an earlier stage was refused: it comes first again
        (ALL[0:14], ALL[14:15]),
    ],
)
def test_pending_starts_with_what_the_first_open_group_lacks(
    committed: list[Stage], first: list[Stage]
) -> None:
    pending = list(plan(PREPARE, RESPOND, LEARN).pending(set(committed).__contains__))
    assert list(pending[0]) == first
    assert [stage for group in pending for stage in group] == [one for one in ALL if one not in committed]


def test_nothing_is_pending_when_all_is_committed() -> None:
    assert list(plan(PREPARE, RESPOND, LEARN).pending(lambda stage: True)) == []


def test_before_lists_what_a_stage_may_have_read() -> None:
    found = plan(PREPARE, RESPOND, LEARN)
    assert found.before(Stage(0, "prepare", "server")) == []
    assert found.before(Stage(2, "respond", "client-1")) == ["r00-prepare", "r01-respond", "r01-learn"]
    with pytest.raises(PlanError, match="client-9/r01-learn is not in the plan"):
        found.before(Stage(1, "learn", "client-9"))


def test_find_answers_a_wrong_name_with_the_legal_ones() -> None:
    found = plan(PREPARE, ONLY_SERVER, rounds=1)
    assert found.find("server", "r01-teach") == Stage(1, "teach", "server")
    with pytest.raises(PlanError, match="no stage 'r01-teach'; legal: r00-prepare"):
        found.find("client-1", "r01-teach")
    with pytest.raises(PlanError, match="none for party 'client-9'"):
        found.find("client-9", "r00-prepare")


@pytest.mark.parametrize(
    "name", ["r1-learn", "r01-Learn", "r01_learn", "r01-", "01-learn", "r01-learn\n", "../r01-learn", ""]
)
def test_other_names_are_no_stages(name: str) -> None:
    with pytest.raises(PlanError, match="is no stage name"):
        parse_stage(name, "server")


def test_stage_names_read_back() -> None:
    for stage in ALL:
        assert parse_stage(stage.name, stage.party) == stage


def test_plan_json_is_read_back_and_mistakes_in_it_are_typed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = make_run(tmp_path)
    assert [step.name for step in read_plan(run).steps] == ["prepare", "respond", "learn"]
    run.plan_json.write_text(run.plan_json.read_text().replace('"client"', '"customer"'))
    with pytest.raises(PlanError, match=r"plan\.json: field 'steps"):
        read_plan(run)
    run.plan_json.write_text('{"run_id"')
    with pytest.raises(PlanError, match=r"plan\.json"):
        read_plan(run)
    with pytest.raises(PlanError, match=r"plan\.json: cannot be read"):
        read_plan(RunDir(tmp_path / "none"))


def test_a_methods_steps_become_its_plan() -> None:
    found = layers(
        scenario="1", method="lada", dataset="lab-math", size="tiny", settings=["method.schedule=server_last"]
    )
    config = resolve_run(found)
    made = make_plan(config, load_method(config.method))
    names = [f"{group[0].name}:{len(group)}" for group in made.groups() if group[0].round < 2]
    assert names == ["r00-prepare:4", "r01-respond:4", "r01-learn:3", "r01-renew:3", "r01-teach:1"]
    assert made.run_id == config.run_id
