"""A run before a GPU-hour is spent: memory of each party, tokens, FLOPs, hours and bytes of each stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.assumptions import Planning, Texts
from jobs.cluster import Cluster, Resources
from jobs.footprint import FP32, Footprint, Setup
from jobs.method_works import stage_work
from jobs.remedies import footprints, remedies
from jobs.stage_works import Run, StageWork
from jobs.workload import Effort, Training, effort
from lada.communication import DIGEST_BYTES, ID_BYTES
from lada.config import SERVER, PartyOptions, RunConfig
from lada.errors import ConfigError
from lada.model_facts import model_facts
from lada.plan import Plan
from lada.rundir import Stage


@dataclass(frozen=True)
class PartyEstimate:
    """A party's model on the GPUs that it asks for.

    Attributes:
        gpus: of one stage, all nodes together.
        minutes: time limit of one attempt.
        training: None where the party's model is never trained.
    """

    party: PartyOptions
    setup: Setup
    gpus: int
    minutes: int
    training: Footprint | None
    generation: Footprint


@dataclass(frozen=True)
class StageEstimate:
    """A stage's work, and what it sends, a message once per recipient.

    Attributes:
        bytes: of what a method sends: texts, ids, letters, logits, votes.
        extra_bytes: of rewards and adapters, which are published beside it.
        gb: on each GPU at the peak.
        known: whether its work is modelled.
    """

    stage: Stage
    group: int
    gpus: int
    effort: Effort
    bytes: float
    extra_bytes: float
    gb: float
    known: bool

    @property
    def gpu_hours(self) -> float:
        """Of all its GPUs, loading and starting included."""
        return self.gpus * self.effort.hours


@dataclass(frozen=True)
class Estimate:
    """A run in one setting."""

    config: RunConfig
    planning: Planning
    parties: tuple[PartyEstimate, ...]
    stages: tuple[StageEstimate, ...]

    @property
    def gpu_hours(self) -> float:
        """Of all stages."""
        return sum(one.gpu_hours for one in self.stages)

    @property
    def wall_hours(self) -> float:
        """From begin to end: the stages of a group side by side, no time in the queue."""
        longest: dict[int, float] = {}
        for one in self.stages:
            longest[one.group] = max(longest.get(one.group, 0.0), one.effort.hours)
        return sum(longest.values())

    def of(self, party: str) -> list[StageEstimate]:
        """A party's stages."""
        return [one for one in self.stages if one.stage.party == party]

    @property
    def most_gpus(self) -> int:
        """GPUs of the largest group of stages."""
        used: dict[int, int] = {}
        for one in self.stages:
            used[one.group] = used.get(one.group, 0) + one.gpus
        return max(used.values(), default=0)

    @property
    def unknown(self) -> list[str]:
        """Names of steps that are not modelled."""
        return sorted({one.stage.step for one in self.stages if not one.known})


def estimate(config: RunConfig, plan: Plan, cluster: Cluster, done: Iterable[Stage] = ()) -> Estimate:
    """Memory, work, hours and bytes of all stages of a run that are not ``done``.

    Raises:
        ConfigError: the cluster's file states no ``planning``; nothing is known of a model; or a model does
            not fit the GPUs that it asks for: then with what would make it fit.
    """
    planning = cluster.planning
    if planning is None:
        raise ConfigError(f"cluster '{cluster.name}': no planning section, so memory and hours are unknown")
    run, committed = Run(config, planning), frozenset(done)
    works = {stage: stage_work(run, stage) for group in plan.groups() for stage in group}
    parties = tuple(_party(config, one, cluster, planning, works) for one in config.parties)
    _refuse_what_cannot_fit(parties, cluster)
    by_name = {one.party.name: one for one in parties}
    stages = tuple(
        _stage(config, stage, number, by_name[stage.party], works[stage])
        for number, group in enumerate(plan.groups(), start=1)
        for stage in group
        if stage not in committed
    )
    return Estimate(config, planning, parties, stages)


def both_settings(config: RunConfig, plan: Plan, cluster: Cluster) -> list[Estimate]:
    """The run in the zero-shot and in the one-shot setting."""
    return [estimate(config.model_copy(update={"shots": shots}), plan, cluster) for shots in (0, 1)]


def setup_of(config: RunConfig, party: PartyOptions, resources: Resources, planning: Planning) -> Setup:
    """How a party's model is held and trained.

    Raises:
        ConfigError: nothing is known of the model.
    """
    server, own = party.name == SERVER, config.of_party(party.name)
    options = config.training.server if server else config.training.client
    return Setup(
        facts=model_facts(party.model),
        lora=own.lora,
        keeps_reference=not server,
        ranks=resources.ranks * resources.nodes,
        zero=resources.zero,
        checkpointing=resources.checkpointing,
        micro_tokens=options.micro_tokens,
        head_chunk=config.numerics.head_chunk,
        rows=config.generation.batch_size,
        longest_prompt=_longest_prompt(config, planning, server=server),
        max_new_tokens=own.generation.max_new_tokens,
        responses=1 + len(config.clients) if server else 2,
        planning=planning,
        prompt_tokens=config.generation.prompt_tokens,
        nodes=resources.nodes,
        longest_response=planning.texts.of(config.dataset.name).longest_response,
    )


def _longest_prompt(config: RunConfig, planning: Planning, *, server: bool) -> int:
    """Tokens of a party's longest prompt; WASP's server reads examples with their solutions."""
    texts = planning.texts.of(config.dataset.name)
    longest = texts.longest_question + (texts.demonstration if config.shots else 0)
    if not server or config.method["name"] != "wasp":
        return longest
    return max(longest, int(config.method["examples"]) * (texts.question + texts.response))


def _party(
    config: RunConfig,
    party: PartyOptions,
    cluster: Cluster,
    planning: Planning,
    works: dict[Stage, StageWork],
) -> PartyEstimate:
    resources = cluster.resources_of(config)[party.name]
    setup = setup_of(config, party, resources, planning)
    training, generation = footprints(setup)
    trained = any(
        isinstance(work, Training)
        for stage, found in works.items()
        for _, work in found.works
        if stage.party == party.name
    )
    gpus = resources.gpus * resources.nodes
    minutes = resources.minutes
    return PartyEstimate(party, setup, gpus, minutes, training if trained else None, generation)


def _refuse_what_cannot_fit(parties: Sequence[PartyEstimate], cluster: Cluster) -> None:
    refused = []
    for one in parties:
        short = [each for each in (one.training, one.generation) if each is not None and not each.fits]
        if one.gpus < one.setup.ranks:
            refused.append(
                f"{one.party.name}, {one.party.model}: {one.setup.ranks} ranks on {one.gpus} GPUs; "
                f"each rank needs one (gpus, ranks in configs/clusters/{cluster.name}.yaml)"
            )
        elif short:
            worst = max(short, key=lambda each: each.gb)
            largest = sorted(worst.parts.items(), key=lambda part: -part[1])[:3]
            named = ", ".join(f"{name} {value:.1f}" for name, value in largest)
            refused.append(
                f"{one.party.name}, {one.party.model}: {worst.kind} takes {worst.gb:.1f} GB on each of its "
                f"{one.setup.ranks} GPUs ({named}), and there are {worst.room_gb:g}; it would fit with "
                + "; or with ".join(remedies(one.setup, trains=one.training is not None))
            )
    if refused:
        raise ConfigError("this does not fit the GPUs that it asks for:\n" + "\n".join(refused))


def _stage(
    config: RunConfig, stage: Stage, group: int, party: PartyEstimate, found: StageWork
) -> StageEstimate:
    return StageEstimate(
        stage,
        group,
        party.gpus,
        effort(found.works, party.setup),
        _sent_bytes(party.setup.planning.texts.of(config.dataset.name), found),
        _extra_bytes(config, party.setup, found),
        _peak_gb(party, found),
        not found.unknown,
    )


def _peak_gb(party: PartyEstimate, found: StageWork) -> float:
    """Of a stage's work; a pass without gradients takes less than generation does."""
    if not found.works:
        return 0.0
    trains = any(isinstance(work, Training) for _, work in found.works)
    return max(party.generation.gb, party.training.gb if trains and party.training is not None else 0.0)


def _sent_bytes(texts: Texts, found: StageWork) -> float:
    """What a stage's method sends, without what JSON and tensor files add."""
    each = texts.response * texts.bytes_per_token + ID_BYTES
    return found.texts * each + found.ids * ID_BYTES + found.other


def _extra_bytes(config: RunConfig, setup: Setup, found: StageWork) -> float:
    """Rewards, and adapters or weight deltas: above the exchange's limits their hash alone."""
    rewards = found.rewards if config.exchange.publish_rewards else 0.0
    if not config.exchange.publish_adapters:
        return rewards
    adapter = setup.lora is not None
    size = setup.trained * FP32 if adapter else setup.weight_bytes
    most = config.exchange.most_published(adapter=adapter)
    return rewards + found.models * (size if size <= most else DIGEST_BYTES)
