"""TIER=rehearsal: random models of the real shapes in small, laid out like staged ones, and a run of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import jobs.__main__
from jobs.check_image import check_models
from jobs.check_staged import check_staged
from jobs.cluster import load_cluster
from lada.__main__ import main
from lada.config import GenerationOptions
from lada.errors import ConfigError
from lada.generation import generate
from lada.layers import CONFIGS, layers
from lada.loading import load_model
from lada.model_facts import known_models, model_facts
from lada.models import build_network
from lada.rehearsal import ANSWERS, small, write_models
from lada.runs import model_folder, resolve_run
from lada.staged import REHEARSED, is_rehearsed, models_of

MODELS = models_of(["1"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of scenario 1."""
    path = tmp_path_factory.mktemp("rehearsal") / "models"
    assert main(["rehearsal-models", "--scenario", "1", "--models", str(path)]) == 0
    return path


# -- the models


@pytest.mark.parametrize("model", sorted(known_models()))
def test_small_shapes_keep_what_makes_the_architecture(model: str) -> None:
    facts, found = model_facts(model), small(model_facts(model).architecture)
    whole = facts.architecture
    kept = ("vocab_size", "max_positions", "tied_embeddings", "qkv_bias", "qk_norm", "sandwich_norms")
    kept += ("activation", "final_softcap", "attention_softcap", "rope_theta", "rope_scaling", "norm_eps")
    assert {key: getattr(found, key) for key in kept} == {key: getattr(whole, key) for key in kept}
    assert (found.query_size == found.hidden_size) == (whole.query_size == whole.hidden_size)
    assert (found.num_heads == found.num_kv_heads) == (whole.num_heads == whole.num_kv_heads)
    assert (found.sliding_window is None) == (whole.sliding_window is None)
    with torch.device("meta"):
        network = build_network(found.config_json(facts.model_type), seed=0)
    assert sum(one.numel() for one in network.parameters()) == found.parameters < 0.05 * whole.parameters


def test_a_folder_is_like_a_staged_one(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        model.rpartition("/")[2] for model in MODELS
    )
    for model in MODELS:
        facts, place = model_facts(model), folder / model.rpartition("/")[2]
        config = json.loads((place / "config.json").read_text())
        assert (config["model_type"], config["vocab_size"]) == (
            facts.model_type,
            facts.architecture.vocab_size,
        )
        weights = load_file(place / "model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.bfloat16}
        assert weights["model.embed_tokens.weight"].shape[0] == facts.architecture.vocab_size
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        assert tokenizer.get_vocab_size() < 1000, "the lab's, the other rows of the vocabulary are padding"
        named = json.loads((place / "tokenizer_config.json").read_text())
        assert tokenizer.token_to_id(named["eos_token"]) == config["eos_token_id"]
        assert ("chat_template" in named) == (facts.prompt.kind == "chat")
        assert ("bos_token" in named) == facts.prompt.bos == (config["bos_token_id"] is not None)
        text = "naïve — 3 × 4\nThe answer is B.\n"
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("model", MODELS)
def test_texts_hold_known_tokens_answers_and_an_end(model: str, folder: Path) -> None:
    found = load_model(folder / model.rpartition("/")[2], dtype="bfloat16")
    options = GenerationOptions(max_new_tokens=96, temperature=1.0, batch_size=24)
    texts = generate(found, ["Question: how many?\nSolution:"] * 24, options, seed=3)
    ended = [one for one in texts if one.finished]
    assert len(ended) >= 12
    assert 8 < sum(one.num_tokens for one in ended) / len(ended) < 80
    answered = [one for one in texts if any(line.strip() in one.text for line in ANSWERS)]
    assert len(answered) / len(texts) > 0.3
    assert all(one.text for one in ended if one.num_tokens > 5), "no row without a text was drawn"
    (greedy,) = generate(found, ["Question: how many?\nSolution:"], GenerationOptions(max_new_tokens=96))
    assert greedy.finished and "The answer is" in greedy.text


def test_what_is_there_stays_and_other_models_are_never_touched(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_models(MODELS, folder) == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    (tmp_path / "gemma-2-2b").mkdir()
    with pytest.raises(ConfigError, match=r"holds models of another kind \(gemma-2-2b\): name another"):
        write_models(["Qwen/Qwen3-0.6B"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["gemma-2-2b"]


def test_weights_may_be_cut_into_several_files(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for place, limit in ((whole, None), (cut, 25 * 10**6)):
        write_models(["Qwen/Qwen3-32B"], place, shard_bytes=limit)
    index = json.loads((cut / "Qwen3-32B" / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(path.name for path in (cut / "Qwen3-32B").glob("*.safetensors"))
    assert sorted(set(index.values())) == files and len(files) > 1
    expected = load_file(whole / "Qwen3-32B" / "model.safetensors")
    found = {key: value for name in files for key, value in load_file(cut / "Qwen3-32B" / name).items()}
    assert found.keys() == expected.keys() == index.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_random_weights_and_real_ones_are_not_taken_for_each_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADA_MODELS", str(folder))
    find = {
        tier: model_folder(
            resolve_run(layers(scenario="1", method="lada", dataset="mathinstruct", size="tiny", tier=tier))
        )
        for tier in ("paper", "rehearsal")
    }
    with pytest.raises(ConfigError, match="has random weights, of a rehearsal, and the run is of tier paper"):
        find["paper"]("google/gemma-2-2b")
    assert is_rehearsed(find["rehearsal"]("google/gemma-2-2b"))
    (tmp_path / "gemma-2-2b").mkdir()
    monkeypatch.setenv("LADA_MODELS", str(tmp_path))
    real = model_folder(
        resolve_run(
            layers(scenario="1", method="lada", dataset="mathinstruct", size="tiny", tier="rehearsal")
        )
    )
    with pytest.raises(ConfigError, match="is no rehearsal model, and the run is of tier rehearsal"):
        real("google/gemma-2-2b")


def test_doctor_says_what_they_are_and_what_is_missing(folder: Path) -> None:
    cluster = load_cluster("devcluster-ranks").model_copy(update={"models": str(folder)})
    (said,) = [one for one in check_staged(cluster) if one.subject == "rehearsal models"]
    assert said.level == "ok" and "Qwen3-32B" in said.text and "TIER=rehearsal alone" in said.text
    assert not [one for one in check_staged(cluster) if one.subject == "staged models"]
    missing = check_models(cluster)
    assert missing.level == "warn" and "make rehearsal-models CLUSTER=devcluster-ranks" in str(missing.mend)


def test_a_cluster_s_image_makes_them_and_may_write_there_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make rehearsal-models CLUSTER=… MODELS=<folder>`: the folder is shown writable, nothing else is."""
    (tmp_path / "image.sif").write_bytes(b"")
    (tmp_path / "data").mkdir()
    facts = {"image": str(tmp_path / "image.sif"), "data": str(tmp_path / "data"), "models": str(tmp_path)}
    (tmp_path / "mine.yaml").write_text(json.dumps({**facts, "resources": [{"up_to": 80}]}))
    ran: list[list[str]] = []

    class Done:
        returncode, stdout = 0, "made"

    monkeypatch.setattr("jobs.host.subprocess.run", lambda argv, **options: ran.append(argv) or Done())
    monkeypatch.setenv("LADA_MODELS", str(tmp_path / "models"))  # as the Makefile sets it for MODELS=
    asked = ["--scenario", "1", "2", "--cluster", str(tmp_path / "mine.yaml"), "--models"]
    assert jobs.__main__.main(["rehearsal-models", *asked, str(tmp_path / "models")]) == 0
    binds = [argument for argument in ran[0] if argument.startswith(str(tmp_path)) and ":" in argument]
    assert binds == [f"{tmp_path}/models:{tmp_path}/models:rw"]
    assert ran[0][-6:] == ["rehearsal-models", "--scenario", "1", "2", "--models", f"{tmp_path}/models"]
    assert jobs.__main__.main(["rehearsal-models", "--scenario", "9", *asked[3:], "elsewhere"]) == 2


def test_the_tier_is_the_paper_tier_in_small() -> None:
    """What decides how a run is computed is the same; only sizes and lengths are smaller."""
    whole, rehearsed = (
        resolve_run(layers(scenario="1", method="lada", dataset="mathinstruct", size="paper", tier=tier))
        for tier in ("paper", "rehearsal")
    )
    assert REHEARSED.startswith(".") and CONFIGS.is_dir()
    # A thread a rank, and rows of logits over whole vocabularies in nodes of a few GB.
    assert rehearsed.numerics.model_copy(update={"threads": 8, "head_chunk": 1024}) == whole.numerics
    assert (rehearsed.parties, rehearsed.lora, rehearsed.template) == (
        whole.parties,
        whole.lora,
        whole.template,
    )
    assert (rehearsed.training, rehearsed.data, rehearsed.rounds) == (
        whole.training,
        whole.data,
        whole.rounds,
    )
