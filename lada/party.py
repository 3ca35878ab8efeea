"""All that a step may touch: who it is, its own data and state, its model, and what was sent to it."""

from __future__ import annotations

import copy
import gc
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lada.config import SERVER, Options, PartyOptions, RunConfig, TrainOptions, derive_seed
from lada.errors import ConfigError, ExchangeError, ModelError
from lada.exchange import committed_stages
from lada.gpus import stage_device
from lada.inbox import Inbox, partners
from lada.language_model import LanguageModel, State, state_hash
from lada.loading import CHECKPOINTING, load_model, open_on_rank
from lada.manifest import Kind, Payload, read_manifest
from lada.plan import Plan
from lada.prompts import prompt
from lada.ranks import ALONE, Ranks
from lada.records import Item, Letter, Question, Record, Replayed, dump_jsonl, read_jsonl
from lada.resume import Resume
from lada.rundir import RunDir, Stage, parse_stage, sha256
from lada.synthetic import Synthetic
from lada.vocabulary import Vocabulary, open_vocabulary

MODEL_FILE = "state/model.safetensors"
ADAPTER_FILE = "adapter.safetensors"


class Reporter(Protocol):
    """Shows a person how far a stage is."""

    def phase(self, name: str, total: int) -> Callable[[int, str], None]:
        """Begin a phase of ``total`` units; the returned function takes units done and a short note."""


@dataclass
class ModelCache:
    """Models as they came, kept between the stages of one process.

    Several ranks compute one stage alone and keep nothing.
    """

    ranks: Ranks = ALONE
    models: dict[tuple[Any, ...], LanguageModel] = field(default_factory=dict)

    def open(self, folder: Path, config: RunConfig, seed: int, own: PartyOptions) -> LanguageModel:
        """A fresh copy of a party's model; a real one is read again, since two of them need not fit."""
        dtype = config.numerics.dtype
        options: dict[str, Any] = {"dtype": dtype, "lora": config.lora, "seed": seed}
        if config.tier != "lab":
            gc.collect()  # an earlier copy may hang in a circle of references
            options |= {"form": own.prompt, "attention": own.attention}
            options["checkpointing"] = bool(os.environ.get(CHECKPOINTING))
        if self.ranks.size > 1:
            return self.ranks.open(open_on_rank, folder, options)
        if config.tier != "lab":
            return load_model(folder, device=stage_device(config.tier, self.ranks), **options)
        key = (folder, dtype, config.lora, seed)
        if key not in self.models:
            self.models[key] = load_model(folder, dtype=dtype, lora=config.lora, seed=seed)
        return copy.deepcopy(self.models[key])


class Party:
    """A party in one stage.

    Args:
        run: the run's folder; in a container only this party's part of it is there.
        options: the method's validated options.
        model_folder: model id -> folder of its files.
        cache: models shared by the stages of this process.
        resume: this attempt's resume points, for every long computation of the stage.

    Attributes:
        name, role, round: who and when.
        partners: the other side of each pair: the server, or all clients.
        inbox: what others sent.
        ranks: that compute the stage.
    """

    def __init__(
        self,
        run: RunDir,
        config: RunConfig,
        plan: Plan,
        stage: Stage,
        *,
        options: Options,
        model_folder: Callable[[str], Path],
        reporter: Reporter,
        cache: ModelCache,
        resume: Resume,
    ) -> None:
        self.run, self.stage, self.options = run, stage, options
        self.config = config.of_party(stage.party)
        self.name, self.round = stage.party, stage.round
        self.role = "server" if stage.party == SERVER else "client"
        self.partners = partners(stage.party, config.clients)
        self.inbox = Inbox(run, config, plan, stage)
        self.reporter = reporter
        self.resume = resume
        resume.inputs = self.inbox.read
        self._earlier = plan.before(stage)
        self._model_folder, self._cache = model_folder, cache
        self.ranks = cache.ranks

    @property
    def is_last_round(self) -> bool:
        """Whether no round follows."""
        return self.round == self.config.rounds

    def seed(self, purpose: str) -> int:
        """A seed for one purpose of this stage."""
        return derive_seed(self.config.seed, self.name, self.round, self.stage.step, purpose)

    # -- data

    @cached_property
    def public(self) -> dict[str, Question]:
        """The shared questions by id, in order of their ids."""
        return {question.id: question for question in sorted(self.run.public_questions(), key=_id)}

    @cached_property
    def synthetic(self) -> dict[str, Synthetic]:
        """Questions that the server published in earlier stages by id, in the order of publication."""
        return {question.id: question for question in self.inbox.questions()}

    def question(self, name: str) -> Question:
        """A question that messages may name: of the public set, or one that the server published since."""
        return self.public[name] if name in self.public else self.synthetic[name].item().public()

    @cached_property
    def train_items(self) -> list[Item]:
        """This client's local questions with letters."""
        return read_jsonl(Item, self.run.data(self.name, "train"))

    @cached_property
    def test_items(self) -> list[Item]:
        """This party's test questions; the server's are the union of the clients'."""
        return read_jsonl(Item, self.run.data(self.name, "test"))

    @cached_property
    def answers(self) -> dict[str, Letter]:
        """The public questions' letters by id: the host gives them to runs of a mode named ``oracle`` alone.

        Raises:
            ConfigError: when this run is none.
        """
        if not self.config.opens_answers:
            raise ConfigError(f"{self.config.run_id} must not read public answers: no option is 'oracle'")
        return {item.id: item.answer for item in read_jsonl(Item, self.run.data(self.name, "answers"))}

    def replayed(self, partner: str, round: int) -> list[str] | None:
        """Ids that this party selected of this partner in a round of the run that ``replay`` names.

        None: this run replays no other.
        """
        if self.config.replayed is None:
            return None
        return [one.id for one in self._replay if (one.partner, one.round) == (partner, round)]

    @cached_property
    def _replay(self) -> list[Replayed]:
        return read_jsonl(Replayed, self.run.data(self.name, "replay"))

    @cached_property
    def demo(self) -> Item | None:
        """The one-shot example, None in the zero-shot setting."""
        return read_jsonl(Item, self.run.demo)[0] if self.config.shots else None

    def prompt(self, question: Question) -> str:
        """The prompt of a question, the same for generation, training and test."""
        return prompt(question, template=self.config.template, demo=self.demo)

    # -- model

    def open_model(self) -> LanguageModel:
        """This party's model as it stands: as it came, or as its last training stage left it."""
        seed = derive_seed(self.config.seed, self.name, "adapter")
        own = self.config.party(self.name)
        model = self._cache.open(self.model_folder, self.config, seed, own)
        state = self.latest(MODEL_FILE)
        if state is not None:
            model.load_state(load_tensors(state))
        if self.role == "client" and state is not None:
            model.set_reference(load_tensors(self._reference()))
        return model

    @property
    def model_folder(self) -> Path:
        """Where the files of this party's model lie."""
        return self._model_folder(self.config.party(self.name).model)

    @property
    def model_digest(self) -> str:
        """sha256 of the state that `open_model` would give this party's model; ``as it came`` before any."""
        for stage, folder in self._commits_backward():
            entries = read_manifest(folder, stage.party, stage.name).files
            for entry in entries:
                if entry.path == MODEL_FILE:
                    return entry.sha256
        return "as it came"

    def _reference(self) -> bytes:
        """The state that local fine-tuning left: the client's reference policy in all rounds."""
        for name in self._earlier:
            stage = parse_stage(name, self.name)
            folder = self.run.commit(stage)
            if (folder / MODEL_FILE).is_file():
                return _verified(folder, MODEL_FILE, stage)
        raise ModelError(f"{self.name} has no reference policy yet")

    def vocabulary(self, name: str) -> Vocabulary:
        """The tokens of a party's model: its tokenizer is public, unlike its weights after training."""
        party = self.config.party(name)
        return open_vocabulary(self._model_folder(party.model), party.prompt)

    def training(self, kind: str) -> TrainOptions:
        """Optimiser options of ``local``, or of a role with this party's own overrides."""
        options: TrainOptions = getattr(self.config.training, kind)
        if kind == "local":
            return options
        own = self.config.party(self.name)
        changed = {"learning_rate": own.learning_rate, "epochs": own.epochs}
        return options.model_copy(update={key: v for key, v in changed.items() if v is not None})

    # -- state

    def latest(self, name: str) -> bytes | None:
        """A private file of this party's newest commit that has it, checked against its manifest."""
        for stage, folder in self._commits_backward():
            if (folder / name).is_file():
                return _verified(folder, name, stage)
        return None

    def _commits_backward(self) -> Iterator[tuple[Stage, Path]]:
        """This party's commits before this stage, the newest first."""
        done = {stage.name: stage for stage in committed_stages(self.run, self.name)}
        for name in reversed(self._earlier):
            if name in done:
                yield done[name], self.run.commit(done[name])

    def latest_json(self, name: str) -> Any:
        """`latest` as JSON; None when there is none."""
        content = self.latest(name)
        return None if content is None else json.loads(content)

    def latest_tensors(self, name: str) -> State | None:
        """`latest` as tensors; None when there is none."""
        content = self.latest(name)
        return None if content is None else load_tensors(content)


def model_payloads(model: LanguageModel, party: Party) -> tuple[Payload, dict[str, Payload]]:
    """The private model state of a party, and what it publishes of it.

    Returns:
        The payload for MODEL_FILE; file name -> payload to publish: the adapter or the weight delta, its hash
        alone above `ExchangeOptions.most_published`, nothing with ``exchange.publish_adapters`` off.
    """
    private = tensors_payload(model.state(), "state")
    if not party.config.exchange.publish_adapters:
        return private, {}
    delta = model.delta()
    most = party.config.exchange.most_published(adapter=model.lora is not None)
    if sum(value.nbytes for value in delta.values()) <= most:
        data = tensors_payload(delta, "adapters")
        if len(data.data) <= most:
            return private, {ADAPTER_FILE: data}
    digest = json_payload({"sha256": state_hash(delta)}, "adapters")
    return private, {"adapter_hash.json": digest}


def records_payload(records: list[Any], kind: Kind) -> Payload:
    """Records as JSON lines."""
    listed: list[Record] = list(records)
    return Payload(kind, len(listed), dump_jsonl(listed).encode())


def json_payload(content: Any, kind: Kind) -> Payload:
    """A JSON value, keys sorted.

    Raises:
        ModelError: when it holds NaN or infinity, which no measurement should give.
    """
    try:
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ModelError(f"{kind} hold a value that is not a finite number") from error
    return Payload(kind, 1, f"{text}\n".encode())


def tensors_payload(tensors: Mapping[str, Tensor], kind: Kind) -> Payload:
    """Tensors as safetensors; tied weights are stored once per name."""
    whole = {key: value.contiguous().clone() for key, value in sorted(tensors.items())}
    return Payload(kind, len(whole), save_tensors(whole))


def _verified(folder: Path, name: str, stage: Stage) -> bytes:
    """A file of an own commit; a broken one is an ExchangeError, so the driver has the stage run again."""
    content = (folder / name).read_bytes()
    manifest = read_manifest(folder, stage.party, stage.name)
    digests = {entry.path: entry.sha256 for entry in manifest.files}
    if digests.get(name) != sha256(content):
        detail = "content is not what the manifest says"
        raise ExchangeError("sha256", detail, party=stage.party, stage=stage.name, file=name)
    return content


def _id(question: Question) -> str:
    return question.id
