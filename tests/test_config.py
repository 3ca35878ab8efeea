"""The schema of run.yaml: frozen, parties in order, run ids and seeds."""

from __future__ import annotations

import pytest

from lada.config import RunConfig, derive_seed
from lada.errors import ConfigError
from lada.layers import validate
from tests.fake_runs import tiny_config


def test_parties_must_be_in_order() -> None:
    config = tiny_config().model_dump(mode="json")
    config["parties"] = [config["parties"][1], config["parties"][0]]
    with pytest.raises(ConfigError, match=r"here\.yaml: key 'parties': parties must be server, client-1"):
        validate(RunConfig, config, {"parties": "here.yaml"})


def test_a_config_cannot_be_changed_and_knows_its_parties() -> None:
    config = tiny_config(scenario="1")
    with pytest.raises(ValueError, match="frozen"):
        config.rounds = 9  # type: ignore[misc]
    assert config.clients == ("client-1", "client-2", "client-3")
    assert config.party("client-2").model == "google/gemma-2-27b"
    with pytest.raises(ConfigError, match="no party 'client-9'; legal: server, client-1"):
        config.party("client-9")


def test_the_run_id_is_readable_and_follows_the_content() -> None:
    config = tiny_config()
    assert config.run_id.startswith("one-client-lada-lab-math-0shot-s0-")
    other = tiny_config("generation.max_new_tokens=95")
    assert other.run_id != config.run_id
    assert other.run_id.rpartition("-")[0] == config.run_id.rpartition("-")[0]


def test_seeds_differ_by_every_part_and_are_stable() -> None:
    seeds = {derive_seed(*parts) for parts in [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1)]}
    assert len(seeds) == 4
    assert derive_seed(0, "server", 1, "learn", "order") == derive_seed(0, "server", 1, "learn", "order")
    assert all(0 <= seed < 2**63 for seed in seeds)
