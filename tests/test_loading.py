"""Models as they are published: weights in several files, chat templates, tokenizers of another kind."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import BOS, LORA, tiny_config, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer

from lada.config import LoraOptions, PromptForm
from lada.errors import ModelError
from lada.lab import WEIGHTS
from lada.language_model import LanguageModel, state_hash
from lada.layers import read_run
from lada.loading import load_model
from lada.model_facts import model_facts
from lada.models import build_network, read_config
from lada.reuse import inputs
from lada.sentencepiece import convert
from lada.vocabulary import open_vocabulary
from tests.federation import make
from tests.one_party import party
from tests.scaled_models import MODELS, scaled_facts, write_scaled
from tests.smallest_models import SETTINGS

IDS = torch.tensor([[5, 9, 8, 7, 6, 5]])
QWEN, LLAMA, INTERN = "Qwen/Qwen3-0.6B", "meta-llama/Meta-Llama-3-8B", "internlm/internlm3-8b-instruct"
GEMMA = "google/gemma-2-2b"
SMALL = {"vocab_size": 900}


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.network(input_ids=IDS).logits
    return out


def opened(folder: Path, model: str, **options: Any) -> LanguageModel:
    return load_model(folder, form=model_facts(model).prompt, **options)


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


# -- weights


def folder_of(path: Path, **changes: object) -> Path:
    config = tiny_config() | changes
    network = build_network(tiny_config(), seed=3)
    weights = {key: value for key, value in network.state_dict().items() if key != "lm_head.weight"}
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    return path


def test_loading_a_folder(tmp_path: Path) -> None:
    model = load_model(folder_of(tmp_path))
    assert torch.equal(logits(model), logits(tiny_model(seed=3)))
    assert model.prompt_ids("t9") == [BOS, 9]
    assert load_model(tmp_path, lora=LORA).delta().keys() == tiny_model(lora=LORA).delta().keys()


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)
    folder_of(tmp_path, num_hidden_layers=3)
    with pytest.raises(ModelError, match="missing"):
        load_model(tmp_path)
    folder_of(tmp_path, num_hidden_layers=1)
    with pytest.raises(ModelError, match="unexpected"):
        load_model(tmp_path)


@pytest.mark.parametrize("model", MODELS)
def test_ten_published_forms_open_to_the_network_that_was_written(model: str, tmp_path: Path) -> None:
    folder = write_scaled(tmp_path / "m", model, **SMALL)
    found = opened(folder, model)
    facts = scaled_facts(model, **SMALL)
    shape = facts.architecture
    parameters = {name: value.numel() for name, value in found.network.named_parameters()}
    assert sum(parameters.values()) == shape.parameters
    expected = build_network(facts.config_json | {"pad_token_id": 0}, seed=1)
    weights = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    expected.load_state_dict(weights, strict=False)
    if shape.tied_embeddings:
        expected.tie_weights()
    with torch.no_grad():
        assert torch.equal(expected(input_ids=IDS).logits, logits(found))
    assert found.softcap == shape.final_softcap
    assert found.hf_config._attn_implementation == facts.attention


@pytest.mark.parametrize(
    "name", ["gemma-2-2b", "internlm3-8b-instruct", "qwen2.5-72b-instruct", "qwen3-0.6b"]
)
def test_lab_models_open_to_the_bits_that_they_had(name: str) -> None:
    """As a whole network that is made first and then filled, which takes twice the memory."""
    folder = WEIGHTS / name
    network = build_network(json.loads((folder / "config.json").read_text()), seed=0)
    network.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    found = load_model(folder)
    assert state_hash(network.state_dict()) == state_hash(found.network.state_dict())
    with torch.no_grad():
        assert torch.equal(network(input_ids=IDS).logits, logits(found))
    for one, other in zip(network.parameters(), found.network.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad and other.is_contiguous()
        assert other.data_ptr() % 64 == 0, "kernels may choose other paths for memory that is not aligned"


def test_one_file_or_several_dtype_and_adapter(tmp_path: Path) -> None:
    one = write_scaled(tmp_path / "one", LLAMA, files=1, **SMALL)
    three = write_scaled(tmp_path / "three", LLAMA, files=3, **SMALL)
    assert torch.equal(logits(opened(one, LLAMA)), logits(opened(three, LLAMA)))
    narrow = opened(three, LLAMA, dtype="bfloat16", lora=LORA)
    kinds = {p.dtype for name, p in narrow.network.named_parameters() if "lora_" not in name}
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in narrow.trainable()} == {torch.float32}, "adapters are trained in float32"


def test_a_head_of_its_own_beside_tied_embeddings_is_left_out(tmp_path: Path) -> None:
    folder = write_scaled(tmp_path / "m", QWEN, files=1, **SMALL)
    before = logits(opened(folder, QWEN))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, folder / "model.safetensors")
    assert torch.equal(logits(opened(folder, QWEN)), before)


def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = write_scaled(tmp_path / "m", LLAMA, **SMALL)
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    gone = folder / "model-00002-of-00002.safetensors"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(ModelError, match=r"lacks 1 file\(s\).*model-00002-of-00002"):
        opened(folder, LLAMA)
    gone.write_bytes(content[:-100])
    with pytest.raises(ModelError, match=r"00002-of-00002.safetensors cannot be read as safetensors"):
        opened(folder, LLAMA)
    gone.write_bytes(content)
    swapped = next(key for key in listed if listed[key] != gone.name)
    edit(index, weight_map=listed | {swapped: gone.name})
    with pytest.raises(ModelError, match=f"does not hold '{swapped}'"):
        opened(folder, LLAMA)
    edit(index, weight_map=listed)
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"missing \['model.layers.2.*…, unexpected \[\]"):
        opened(folder, LLAMA)
    edit(folder / "config.json", num_hidden_layers=2, intermediate_size=64)
    with pytest.raises(ModelError, match=r"proj.weight' has shape .*, expected"):
        opened(folder, LLAMA)
    edit(folder / "config.json", model_type="mamba9")
    with pytest.raises(ModelError, match="has no class for 'mamba9'"):
        opened(folder, LLAMA)
    index.unlink()
    edit(folder / "config.json", model_type="llama")
    with pytest.raises(ModelError, match=r"no model.safetensors and no model.safetensors.index.json"):
        opened(folder, LLAMA)


def test_internlm3_runs_in_llamas_class_and_only_without_biases(tmp_path: Path) -> None:
    folder = write_scaled(tmp_path / "m", INTERN, **SMALL)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "internlm3"
    model = opened(folder, INTERN)
    assert type(model.network).__name__ == "LlamaForCausalLM"
    rope = model.hf_config.rope_parameters
    assert (rope["rope_theta"], rope["rope_type"], rope["factor"]) == (50000000.0, "dynamic", 6.0)
    edit(folder / "config.json", qkv_bias=True)
    with pytest.raises(ModelError, match="only without qkv_bias"):
        read_config(folder)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_first_and_reference_policy_need_no_copy_of_the_model(
    lora: LoraOptions | None, tmp_path: Path
) -> None:
    """Full fine-tuning reads the model as it came again; what is set aside is what can change."""
    folder = write_scaled(tmp_path / "m", GEMMA, **SMALL)
    model = opened(folder, GEMMA, lora=lora)
    held = [value for value in vars(model).values() if isinstance(value, dict)]
    assert not any(torch.is_tensor(one) for each in held for one in each.values())
    came = logits(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    moved, state = logits(model), model.state()
    with model.reference():
        assert torch.equal(logits(model), came)
    assert torch.equal(logits(model), moved) and not torch.equal(moved, came)
    delta = model.delta()
    assert delta.keys() == state.keys()
    if lora is None:
        key = "model.layers.0.mlp.up_proj.weight"
        first = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}[key]
        assert torch.equal(delta[key], state[key] - first.float())


def test_merging_sets_aside_what_it_touches_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_scaled(tmp_path / "m", QWEN, **SMALL)
    model = opened(folder, QWEN, lora=LoraOptions(targets=("q_proj", "down_proj")))
    copied: list[str] = []
    real = torch.Tensor.to

    def spy(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if options.get("copy"):
            copied.append(str(tuple(self.shape)))
        return real(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", spy)
    with model.merged():
        pass
    assert sorted(copied) == sorted(["(64, 32)", "(32, 48)"] * 2)


# -- how it is asked


def test_plain_models_begin_with_bos_where_their_tokenizers_set_it(tmp_path: Path) -> None:
    folder = write_scaled(tmp_path / "llama", LLAMA, **SMALL)
    model = opened(folder, LLAMA)
    bos = model.tokenizer.token_to_id("<bos>")
    assert model.prompt_ids("12 pens")[0] == bos and model.prompt_ids("12 pens").count(bos) == 1
    assert model.response_ids(" A", finished=False) == model.tokenizer.encode(" A").ids
    without = load_model(folder, form=PromptForm(kind="plain", bos=False))
    assert without.prompt_ids("12 pens") == model.prompt_ids("12 pens")[1:]
    edit(folder / "config.json", bos_token_id=None)
    with pytest.raises(ModelError, match=r"config\.json names no bos_token_id"):
        opened(folder, LLAMA)


def test_chat_models_are_asked_in_a_turn_and_end_with_it(tmp_path: Path) -> None:
    folder = write_scaled(tmp_path / "qwen", QWEN, **SMALL)
    model = opened(folder, QWEN)
    ids = model.prompt_ids("12 pens")
    names = [model.tokenizer.id_to_token(one) for one in ids]
    assert (names[0], names.count("<|im_start|>"), names.count("<|im_end|>")) == ("<|im_start|>", 2, 1)
    shown = model.tokenizer.decode(ids, skip_special_tokens=False)
    assert shown.endswith("<think>\n\n</think>\n\n") and "12 pens" in shown, "thinking is off"
    end = model.tokenizer.token_to_id("<|im_end|>")
    assert model.eos_id == end and model.response_ids(" A")[-1] == end
    assert model.response_ids(" A") == model.response_ids("A"), "nothing stands between turn and response"
    assert model.end_ids == {end} and open_vocabulary(folder, model_facts(QWEN).prompt).eos_id == end
    thinking = model_facts(QWEN).prompt.model_copy(update={"options": {}})
    assert load_model(folder, form=thinking).prompt_ids("12 pens") != ids


def test_chat_with_bos_has_one_and_other_ends_end_too(tmp_path: Path) -> None:
    folder = write_scaled(tmp_path / "intern", INTERN, **SMALL)
    edit(folder / "config.json", eos_token_id=1)
    edit(folder / "generation_config.json", eos_token_id=[1, 3])
    model = opened(folder, INTERN)
    bos = model.tokenizer.token_to_id("<bos>")
    assert model.prompt_ids("x")[0] == bos
    assert model.end_ids == {model.tokenizer.token_to_id("<|im_end|>"), 1, 3}
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    edit(folder / "tokenizer_config.json", chat_template=...)
    (folder / "chat_template.jinja").write_text("{{- bos_token }}" + template)
    again = opened(folder, INTERN)
    assert again.prompt_ids("x") == model.prompt_ids("x"), "one, whether the template writes it or not"


def test_a_chat_without_a_template_or_without_its_end_is_refused(tmp_path: Path) -> None:
    folder = write_scaled(tmp_path / "m", QWEN, **SMALL)
    form = model_facts(QWEN).prompt.model_copy(update={"end_of_turn": "<|over|>"})
    with pytest.raises(ModelError, match=r"no token '<\|over\|>'"):
        load_model(folder, form=form)
    edit(folder / "tokenizer_config.json", chat_template=...)
    with pytest.raises(ModelError, match=r"has no chat template, neither in chat_template\.jinja nor"):
        opened(folder, QWEN)


# -- a SentencePiece file


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def record(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def spm_file(
    path: Path, pieces: list[tuple[str, float, int]], *, algorithm: int = 2, prefix: int = 1
) -> Path:
    """A tokenizer.model as the library writes it: pieces, trainer, normaliser."""
    content = b""
    for text, score, kind in pieces:
        own = record(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind)
        content += record(1, own)
    content += record(2, b"\x18" + varint(algorithm) + varint(35 << 3) + b"\x01")
    content += record(3, b"\x18" + varint(prefix) + b"\x20\x00")
    path.write_bytes(content)
    return path


def pieces() -> list[tuple[str, float, int]]:
    found = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    found += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    joined = ["an", "th", "▁th", "▁a", "the", "▁the", "er", "and", "▁and", "ther", "other", "▁other", "ot"]
    found += [(text, -float(rank), 1) for rank, text in enumerate(joined)]
    return found + [(char, -100.0, 1) for char in "▁abdehnort,1"]


def slowly(text: str, scores: dict[str, float]) -> list[str]:
    """Sentence pieces as their definition says: join the best neighbours until none are."""
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        best = (
            max((scores.get(parts[i] + parts[i + 1], -math.inf), -i) for i in range(len(parts) - 1))
            if len(parts) > 1
            else (-math.inf, 0)
        )
        if best[0] == -math.inf:
            return parts
        place = -best[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@pytest.mark.parametrize(
    "text", ["the other and other", "another band", "  and  on", "rather than a hand", "t"]
)
def test_sentence_pieces_are_those_of_their_definition(text: str, tmp_path: Path) -> None:
    tokenizer = convert(spm_file(tmp_path / "tokenizer.model", pieces()), {})
    scores = {one: score for one, score, kind in pieces() if kind == 1}
    assert tokenizer.encode(text, add_special_tokens=False).tokens == slowly(text, scores)
    assert tokenizer.decode(tokenizer.encode(text).ids) == f" {text}"


def test_sentence_pieces_bytes_and_special_tokens(tmp_path: Path) -> None:
    path, size = spm_file(tmp_path / "tokenizer.model", pieces()), len(pieces())
    tokenizer = convert(
        path, {size: ("<|im_start|>", True), size + 1: ("<|im_end|>", True), 1: ("<s>", True)}
    )
    found = tokenizer.encode("<s><|im_start|>and\nü<|im_end|>", add_special_tokens=False)
    wanted = ["<s>", "<|im_start|>", "▁and", "<0x0A>", "<0xC3>", "<0xBC>", "<|im_end|>"]
    assert found.tokens == wanted
    assert tokenizer.decode(found.ids, skip_special_tokens=True).strip() == "and\nü"
    with pytest.raises(ModelError, match="does not follow"):
        convert(path, {size + 5: ("<|far|>", True)})
    with pytest.raises(ModelError, match="no BPE model"):
        convert(spm_file(tmp_path / "unigram.model", pieces(), algorithm=1), {})
    plain = convert(spm_file(tmp_path / "plain.model", pieces(), prefix=0), {})
    assert plain.encode("and").tokens == ["and"]
    for content in (b"", b"not a model", path.read_bytes()[:-3]):
        (tmp_path / "broken.model").write_bytes(content)
        with pytest.raises(ModelError, match="no SentencePiece file"):
            convert(tmp_path / "broken.model", {})


def test_a_model_with_a_sentencepiece_file_alone_opens(tmp_path: Path) -> None:
    folder = write_scaled(tmp_path / "m", INTERN, **SMALL)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer.json and no tokenizer.model"):
        opened(folder, INTERN)
    spm_file(folder / "tokenizer.model", pieces())
    size = len(pieces())
    added = {str(size): {"content": "<|im_start|>", "special": True}}
    added[str(size + 1)] = {"content": "<|im_end|>", "special": True}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=added, bos_token="<s>")
    edit(folder / "config.json", bos_token_id=1)
    model = opened(folder, INTERN)
    assert isinstance(model.tokenizer, Tokenizer) and model.eos_id == size + 1
    names = [model.tokenizer.id_to_token(one) for one in model.prompt_ids("and the other")]
    assert names[:2] == ["<s>", "<|im_start|>"] and "▁other" in names
    assert open_vocabulary(folder, model_facts(INTERN).prompt).marker == "▁"


# -- a party's own options


def test_a_stage_computes_with_its_partys_own_options(smallest_lab: Path, tmp_path: Path) -> None:
    own = {"max_new_tokens": 7, "lora_targets": ["q_proj"], "local_learning_rate": 0.5, "dtype": "bfloat16"}
    parties = [{"name": "server", "model": "Qwen/Qwen3-32B"}, {"name": "client-1", "model": LLAMA, **own}]
    (tmp_path / "own.yaml").write_text(json.dumps({"scenario": "own", "parties": parties}))
    run = make(
        tmp_path / "runs", *SETTINGS, "lora={rank: 2}", scenario=str(tmp_path / "own.yaml"), small=False
    )
    client, server = party(run, "client-1"), party(run, "server")
    assert client.config.generation.max_new_tokens == 7 and server.config.generation.max_new_tokens == 64
    assert client.training("local").learning_rate == 0.5
    model = client.open_model()
    assert {key.split(".")[-3] for key in model.state()} == {"q_proj"}
    assert (
        model.head_weight.dtype == torch.bfloat16 and server.open_model().head_weight.dtype == torch.float32
    )
    keys = [inputs(run, read_run(run.root), client.stage), inputs(run, read_run(run.root), server.stage)]
    assert keys[0]["config"]["generation"]["max_new_tokens"] == 7, (
        "what earlier runs share is told apart by it"
    )
    assert keys[1]["config"]["generation"]["max_new_tokens"] == 64
