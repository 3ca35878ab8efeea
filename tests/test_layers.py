"""YAML layers: their order, strictness, messages that help, run.yaml round trips."""

from __future__ import annotations

import datetime
import itertools
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lada.config import RunConfig, config_hash
from lada.errors import ConfigError
from lada.layers import (
    dump_run,
    layers,
    merge,
    parse_setting,
    parse_yaml,
    read_run,
    read_yaml,
    resolve,
    shipped,
    validate,
)
from lada.method import describe_methods, method_names
from lada.runs import resolve_run
from tests.fake_runs import tiny_config


def found(*settings: str, method: str = "lada"):  # type: ignore[no-untyped-def]
    return layers(scenario="1", method=method, dataset="lab-math", size="tiny", settings=settings)


def message(*settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_run(found(*settings))
    return str(caught.value)


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("rouns=3", ["SET rouns=3", "'rouns'", "did you mean 'rounds'", "scenario, seed"]),
        (
            "training.client.learnin_rate=1",
            ["'training.client.learnin_rate'", "did you mean 'learning_rate'", "batch_size"],
        ),
        ("method.reward.profil=paper", ["'method.reward.profil'", "did you mean 'profile'", "SET method"]),
        ("method.bta=0.2", ["SET method.bta=0.2", "'method.bta'", "did you mean 'beta'", "use_filter"]),
        ("lora.rnk=4", ["'lora.rnk'", "did you mean 'rank'", "alpha, dropout"]),
        ("zzzzz=1", ["unknown key 'zzzzz'", "legal keys here"]),
        ("numerics.dtype=float16", ["'numerics.dtype'", "'float32' or 'bfloat16'", "found 'float16'"]),
        ("shots=2", ["'shots'", "0 or 1", "found 2"]),
        ("method.schedule=sometimes", ["SET method.schedule", "'parallel' or 'server_last'", "'sometimes'"]),
        ("rounds=three", ["SET rounds=three", "'rounds'", "valid integer", "found 'three'"]),
        ("rounds=3.0", ["'rounds'", "valid integer"]),
        ("rounds=0", ["'rounds'", "greater than or equal to 1"]),
        ("rounds=100", ["'rounds'", "less than or equal to 99"]),
        ("seed=true", ["'seed'", "valid integer"]),
        ("training.client.learning_rate=.nan", ["SET training", "'training.client.learning_rate'", "nan"]),
        ("rounds=2020-01-01", ["SET rounds=2020-01-01", "'rounds'", "neither text nor a finite number"]),
        ("data=3", ["'data'", "object", "found 3"]),
        ("method.name=3", ["SET method.name=3", "method needs a name"]),
        ("parties=[]", ["SET parties=[]", "'parties'", "server, client-1"]),
    ],
)
def test_a_mistake_names_file_key_nearest_name_and_legal_values(setting: str, parts: list[str]) -> None:
    text = message(setting)
    assert [part for part in parts if part not in text] == []


def test_a_mistake_in_a_file_names_that_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("scenario: mine\npartys: []\n")
    with pytest.raises(ConfigError) as caught:
        resolve(layers(scenario=str(path), method="lada", dataset="lab-math", size="tiny"))
    lines = str(caught.value).splitlines()
    assert f"{path}: unknown key 'partys'; did you mean 'parties'?" in str(caught.value)
    assert any("'parties' is missing" in line for line in lines)


def test_unknown_names_of_files_are_answered_with_the_legal_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'mathinstruct'\?.*Legal: aqua-rat, cot-collection"):
        shipped("datasets", "mathinstrukt")
    with pytest.raises(ConfigError, match=r"no size 'huge'; legal: tiny, quick, paper"):
        layers(scenario="1", method="lada", dataset="lab-math", size="huge")
    with pytest.raises(ConfigError, match=r"no method 'ladda'; legal: .*lada, "):
        resolve_run(found(method="ladda"))
    with pytest.raises(ConfigError, match=r"no-such-file\.yaml: cannot be read"):
        layers(scenario="no-such-file.yaml", method="lada", dataset="lab-math", size="tiny")


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.e-4", "3.0e-4", "0.0003", "+3e-4"])
def test_numbers_are_read_as_people_write_them(text: str) -> None:
    assert parse_yaml(text, "here") == pytest.approx(3e-4)
    config, _ = resolve(found(f"training.client.learning_rate={text}"))
    assert config.training.client.learning_rate == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\nb: 2\na: 3\n", "key 'a' stands twice, near line 1"),
        ("x: {y: 1, y: 2}\n", "key 'y' stands twice"),
        ("a: [1, 2\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("a: 1\nmade: 2024-13-45\n", "'2024-13-45' cannot be read (month must be in 1..12)"),
        ("a: 1\nmade: 2024-13-45\n", "line 2, column 7"),
        ("a: 1\nname: caf\xe9\n", "line 2 is not UTF-8"),
    ],
)
def test_bad_yaml_names_the_file(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)


def test_a_date_of_no_calendar_in_a_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"SET x=2024-13-45: .*text stands in quotes"):
        parse_setting("x=2024-13-45")


@pytest.mark.parametrize(
    ("sizes", "part"),
    [
        ("sizes:", "key 'sizes': expected a mapping"),
        ("sizes: [tiny]", "key 'sizes': expected a mapping"),
        ("sizes: {tiny: }", "key 'sizes.tiny': expected a mapping"),
        ("sizes: {1: {}}", "no size 'tiny'; legal: 1"),
    ],
)
def test_a_tier_whose_sizes_are_none_names_the_file_and_key(sizes: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"rounds: 2\n{sizes}\n")
    with pytest.raises(ConfigError) as caught:
        layers(scenario="1", method="lada", dataset="lab-math", size="tiny", tier=str(path))
    assert str(caught.value).startswith(f"{path}: {part}")


@pytest.mark.parametrize("setting", ["rounds", "=3", "a..b=1", ".a=1", ""])
def test_a_setting_needs_key_and_value(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"not of the form key\.subkey=value"):
        parse_setting(setting)


def test_later_layers_win_and_every_value_knows_its_layer() -> None:
    merged, origins = merge(
        [
            ("tier", {"a": 1, "deep": {"x": 1, "y": 1}, "list": [1, 2]}),
            ("scenario", {"a": 2, "deep": {"y": 2}}),
            ("SET", {"deep": {"z": 3}, "list": [9]}),
        ]
    )
    assert merged == {"a": 2, "deep": {"x": 1, "y": 2, "z": 3}, "list": [9]}
    assert origins["deep.x"] == "tier"
    assert (origins["a"], origins["deep.y"], origins["deep.z"]) == ("scenario", "scenario", "SET")


def test_layers_come_in_the_documented_order() -> None:
    names = [source for source, _ in found("rounds=1")]
    places = [next(i for i, name in enumerate(names) if part in name) for part in ("tiers", "datasets")]
    places += [
        next(i for i, name in enumerate(names) if part in name) for part in ("scenarios", "METHOD", "SET")
    ]
    assert places == sorted(places)
    assert resolve(found("rounds=1"))[0].rounds == 1
    assert resolve(found("rounds=1", "rounds=4"))[0].rounds == 4


def test_method_options_are_spelled_out_and_set_ones_win() -> None:
    config = resolve_run(found("method.beta=0.25", "method.reward.round_reward_weight=0.5"))
    assert config.method["beta"] == 0.25
    assert config.method["reward"]["round_reward_weight"] == 0.5
    assert config.method["schedule"] == "parallel"
    again = resolve_run(
        found("method.schedule=parallel", "method.beta=0.25", "method.reward.round_reward_weight=0.5")
    )
    assert again.run_id == config.run_id, "an option set to its default is the same run"
    assert resolve_run(found("method.beta=0.26")).run_id != config.run_id


def test_run_yaml_round_trips(tmp_path: Path) -> None:
    config = resolve_run(found("training.client.learning_rate=1e-05", "lora.rank=4", "dataset.split_seed=3"))
    (tmp_path / "run.yaml").write_text(dump_run(config))
    read = read_run(tmp_path)
    assert read == config
    assert config_hash(read) == config_hash(config)
    assert dump_run(read) == dump_run(config)


@example(name="1e5", model="3E-4", rate=1e22)
@example(name="010", model="yes", rate=5e-324)
@given(
    name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,12}", fullmatch=True),
    model=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    rate=st.floats(min_value=0, max_value=1e30, allow_nan=False),
)
def test_run_yaml_round_trips_whatever_names_and_numbers(name: str, model: str, rate: float) -> None:
    base = tiny_config()
    party = base.parties[0].model_copy(update={"model": model, "learning_rate": rate})
    dataset = base.dataset.model_copy(update={"name": name})
    config = base.model_copy(
        update={"scenario": name, "dataset": dataset, "parties": (party, *base.parties[1:])}
    )
    read = validate(RunConfig, parse_yaml(dump_run(config), "run.yaml"), {})
    assert read == config


def test_values_that_yaml_can_hold_but_json_cannot_are_named() -> None:
    content = tiny_config().model_dump(mode="json") | {"rounds": datetime.date(2020, 1, 1)}
    with pytest.raises(ConfigError, match=r"mine\.yaml: key 'rounds'"):
        validate(RunConfig, content, {"rounds": "mine.yaml"})


@pytest.mark.parametrize("method", method_names())
def test_an_unknown_option_of_a_method_is_answered_with_all_options_as_make_methods_lists_them(
    method: str,
) -> None:
    found = layers(
        scenario="1", method=method, dataset="lab-math", size="tiny", settings=["method.colour=red"]
    )
    with pytest.raises(ConfigError, match=r"unknown key 'method\.colour'") as error:
        resolve_run(found)
    shown = str(error.value).partition(f"Options of {method}:\n")[2].splitlines()
    lines = describe_methods()
    own = lines[next(place for place, line in enumerate(lines) if line.startswith(f"{method}: ")) + 1 :]
    listed = list(itertools.takewhile(lambda line: line.startswith("    "), own))
    assert shown == (listed or ["    none"])
