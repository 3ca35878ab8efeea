"""Every YAML that is shipped: it resolves in every combination, and the scenarios are Table I."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest

from lada.lab import LAB_MODELS
from lada.layers import CONFIGS, layers, read_yaml
from lada.method import method_names
from lada.runs import resolve_run

TABLE = Path(__file__).parents[1].parent / "shared" / "paper" / "scenarios.csv"


def names(kind: str) -> list[str]:
    found = sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))
    assert found, kind
    return found


@pytest.mark.parametrize("tier", names("tiers"))
def test_every_combination_resolves(tier: str) -> None:
    sizes = read_yaml(CONFIGS / "tiers" / f"{tier}.yaml")["sizes"]
    assert {"tiny", "quick", "paper"} <= sizes.keys() or tier != "lab"
    seen = set()
    every = itertools.product(names("scenarios"), names("datasets"), sizes, method_names())
    for scenario, dataset, size, method in every:
        found = layers(scenario=scenario, method=method, dataset=dataset, size=size, tier=tier)
        config = resolve_run(found)
        assert (config.scenario, config.dataset.name, config.size) == (scenario, dataset, size)
        assert (config.tier, config.method["name"]) == (tier, method)
        seen.add(config.run_id)
    assert len(seen) == len(names("scenarios")) * len(names("datasets")) * len(sizes) * len(method_names())


@pytest.mark.parametrize("path", sorted((CONFIGS / "methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_method_files_belong_to_a_method_and_set_nothing_else(path: Path) -> None:
    assert path.stem in method_names()
    content = read_yaml(path)
    assert set(content) <= {"method", "local", "training", "generation"}


@pytest.mark.parametrize("scenario", names("scenarios"))
def test_a_scenario_file_is_named_after_its_content_and_its_models_exist_in_the_lab(scenario: str) -> None:
    content = read_yaml(CONFIGS / "scenarios" / f"{scenario}.yaml")
    assert content["scenario"] == scenario
    assert {party["model"] for party in content["parties"]} <= LAB_MODELS.keys()


def test_sizes_of_the_paper_are_section_vi_a() -> None:
    config = resolve_run(layers(scenario="1", method="lada", dataset="mathinstruct", size="paper"))
    assert (config.data.num_train, config.data.num_test, config.data.num_public) == (1000, 500, 1000)


@pytest.mark.parametrize("scenario", ["1", "2", "3", "4"])
def test_scenarios_equal_table_1(scenario: str) -> None:
    if not TABLE.is_file():
        pytest.skip("the paper's tables (shared/paper beside the checkout) are not here")
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scenario"] == f"Scenario {scenario}"]
    expected = {
        "server" if row["party"] == "LLM" else row["party"].lower().replace(" ", "-"): row["model"]
        for row in rows
    }
    parties = read_yaml(CONFIGS / "scenarios" / f"{scenario}.yaml")["parties"]
    assert {party["name"]: party["model"] for party in parties} == expected
