"""The plan's work against torch's own FLOP counts and against what whole tiny federations really compute."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.assumptions import Planning
from jobs.cluster import load_cluster
from jobs.method_works import stage_work
from jobs.paper_plan import _extra_bytes, both_settings, estimate
from jobs.stage_works import Run
from jobs.workload import Generation, Pass, Training, _decoding_passes, effort, work_flops, work_seconds
from lada.config import RunConfig
from lada.errors import ConfigError
from lada.layers import layers
from lada.plan import Plan
from lada.rundir import Stage
from tests.test_footprint import ONE_OF_EACH_CLASS, PROMPT, RESPONSE, ROWS, network, setup, small

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SCENARIOS = ("1", "2", "3", "4")
DATASETS = ("mathinstruct", "cot-collection")
EVERY_METHOD = {
    "standalone": [()],
    "standalone_matched": [()],
    "fedkd": [(), ("schedule=sequential",), ("server_update=none",), ("plugin=lada",)],
    "sft": [()],
    "lada": [(), ("schedule=server_last",), ("use_filter=false",), ("reasoning_distillation=false",)],
    "fedmkt": [(), ("mode=seq",), ("server_update=none",), ("plugin=lada",)],
    "wasp": [(), ("server_update=none",), ("server_update=sft_on_slm",), ("plugin=lada",)],
    "socratic_cot": [()],
    "rstar": [(), ("reading=R3",), ("discriminator=false",)],
}


OF_ARMS = {"wasp": ("generation.batch_size=24",)}
"""Settings of configs/arms/paper.yaml that decide whether an arm fits."""


def paper(
    scenario: str, method: str = "lada", *settings: str, dataset: str = "mathinstruct"
) -> tuple[RunConfig, Plan]:
    """A paper-tier run and its plan."""
    from lada.method import load_method, make_plan
    from lada.runs import resolve_run

    found = layers(
        scenario=scenario,
        method=method,
        dataset=dataset,
        size="paper",
        tier="paper",
        settings=(*OF_ARMS.get(method, ()), *settings),
    )
    config = resolve_run(found)
    return config, make_plan(config, load_method(config.method))


# -- FLOPs


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("model", ONE_OF_EACH_CLASS)
def test_flops_are_what_torch_counts(model: str, lora: bool) -> None:
    """But for the attention's scores, of which torch counts the half above the diagonal too."""
    from torch.utils.flop_counter import FlopCounterMode

    from lada.forward import forward_log_probs

    one = small(model, lora=lora, layers=2, checkpointing=False)
    learner = network(one)
    texts = [(tuple(range(3, 3 + PROMPT)), tuple(range(90, 90 + RESPONSE)))] * ROWS

    def log_probs() -> Any:
        return forward_log_probs(learner, texts, head_chunk=one.head_chunk)

    with FlopCounterMode(display=False) as passing, torch.no_grad():
        log_probs()
    assert work_flops(Pass(ROWS, PROMPT, RESPONSE), one) == pytest.approx(passing.get_total_flops(), rel=0.06)
    with FlopCounterMode(display=False) as training:
        torch.autograd.backward(log_probs().sum())
    found = work_flops(Training(ROWS, PROMPT, RESPONSE, epochs=1, steps=1), one)
    assert found == pytest.approx(training.get_total_flops(), rel=0.06)


def test_checkpointing_costs_a_forward_pass_of_the_body() -> None:
    kept, again = (setup("Qwen/Qwen3-8B", checkpointing=value) for value in (False, True))
    work = Training(10, 100, 50, epochs=3, steps=6)
    body = 3 * work_flops(Pass(10, 150, 0), kept)
    assert work_flops(work, again) - work_flops(work, kept) == pytest.approx(body)
    per_token = work_flops(work, again) / work.tokens / kept.shape.parameters
    assert 5.0 < per_token < 5.5, "6 N a token with LoRA and checkpointing, without both ends' 1.2 of 8.2"


# -- seconds


def test_zero_3_moves_weights_for_every_micro_step() -> None:
    one = setup("Qwen/Qwen3-32B", ranks=4, zero=3)
    short = Training(8, 100, 28, epochs=1, steps=1)
    # 32.76e9 weights three times, 134.2e6 gradients in float32 once; three of four shares are others'
    moving = 0.75 * (3 * 65.524e9 + 4 * 134.2e6)
    assert work_seconds(short, one) == pytest.approx(moving / 170e9, rel=1e-3), (
        "256 tokens a rank: by the links"
    )
    long = Training(1024, 100, 28, epochs=1, steps=1)
    assert work_seconds(long, one) > 3 * moving / 170e9, "32768 tokens a rank: by arithmetic"
    unshared = work_seconds(short, replace(one, zero=0))
    assert unshared == pytest.approx(1.2 * work_flops(short, one) / (4 * 312e12 * 0.4))


def test_padding_makes_micro_batches_and_arithmetic() -> None:
    """160 tokens a rank that become 288 are two micro-batches of 256, and twice as many gathers."""
    one = setup("Qwen/Qwen3-32B", ranks=4, zero=3, micro_tokens=256)
    found = work_seconds(Training(5, 100, 28, epochs=1, steps=1), one)
    assert found == pytest.approx(2 * 0.75 * (3 * 65.524e9 + 4 * 134.2e6) / 170e9, rel=1e-3)
    many = Training(16_000, 100, 28, epochs=1, steps=1)
    assert work_seconds(many, replace(one, micro_tokens=8192)) == pytest.approx(
        1.8 * work_flops(many, one) / (4 * 312e12 * 0.4)
    )


def test_full_fine_tuning_sends_float32_gradients_after_every_micro_batch() -> None:
    one = setup("Qwen/Qwen3-8B", lora=False, ranks=8, zero=3, checkpointing=False, micro_tokens=1024)
    short = Training(16, 100, 28, epochs=1, steps=1)  # 2048 tokens are 461 a rank with padding: one pass
    moved = 2 * 16.382e9 + 4 * 8.191e9
    assert work_seconds(short, one) == pytest.approx(0.875 * moved / 170e9, rel=1e-3)
    stepped = work_seconds(short, replace(one, zero=2))
    assert stepped == pytest.approx(0.875 * (4 + 2) * 8.191e9 / 170e9, rel=1e-3), (
        "and their weights come back"
    )


def test_nodes_are_linked_more_slowly_than_gpus() -> None:
    one = setup("Qwen/Qwen3-32B", ranks=4, zero=3)
    short = Training(8, 100, 28, epochs=1, steps=1)
    slower = work_seconds(short, replace(one, nodes=2)) / work_seconds(short, one)
    assert slower == pytest.approx(170 / 25)
    answers = Generation(64, 100, 100)
    assert work_seconds(answers, replace(one, nodes=2)) > 4 * work_seconds(answers, one)


def test_generation_under_zero_3_gathers_all_weights_for_every_token() -> None:
    """1000 prompts of 130 tokens on four ranks of Qwen3-32B, 250 new tokens each, by hand."""
    one = setup("Qwen/Qwen3-32B", ranks=4, zero=3, prompt_tokens=8192)
    # 250 prompts a rank in 60 of 64 rows, the longest 600; eight new prompts at a time
    steps, admissions = 250 * 250 / 60 + 600, 32
    gather = 0.75 * 65.524e9 / 170e9  # 0.289 s
    # a step reads 65.5 GB of weights and the cache of 64 rows of 255 tokens, 262144 bytes each
    step = (65.524e9 + 64 * 255 * 262_144) / (0.8 * 2039e9)
    reading = 250 * 130 * 2 * 31.2e9 / (312e12 * 0.5)
    found = work_seconds(Generation(1000, 130, 250), one)
    assert found == pytest.approx((steps + admissions) * gather + steps * step + reading, rel=2e-3)
    assert (steps + admissions) * gather > 0.8 * found, "gathering is most of it"
    twice = work_seconds(Generation(1000, 130, 250), replace(one, rows=32))
    assert twice == pytest.approx((250 * 250 / 30 + 600 + 63) / (steps + admissions) * found, rel=0.03)


def simulated_passes(count: int, ranks: int, rows: int, seed: int) -> int:
    """Passes of `lada.generation._answer` until all ranks are done; log-normal lengths of mean 250."""
    draw = random.Random(seed)
    lengths = [min(1024, round(draw.lognormvariate(math.log(250) - 0.125, 0.5))) for _ in range(count)]
    queues = [lengths[rank::ranks] for rank in range(ranks)]
    live: list[list[int]] = [[] for _ in queues]
    passes = 0
    while any(queues) or any(live):
        passes += 1
        for queue, own in zip(queues, live, strict=True):
            if queue and rows - len(own) >= rows // 8:
                own += [queue.pop() - 1 for _ in range(min(len(queue), rows - len(own), 20))]
            else:
                own[:] = [left - 1 for left in own]
            own[:] = [left for left in own if left > 0]
    return passes


@pytest.mark.parametrize(
    ("count", "ranks", "rows"), [(1000, 4, 48), (1500, 8, 48), (910, 4, 24), (6000, 4, 48)]
)
def test_passes_are_those_of_a_queue(count: int, ranks: int, rows: int) -> None:
    one = setup("Qwen/Qwen3-32B", ranks=ranks, zero=3, rows=rows, prompt_tokens=8192)
    passes = sum(_decoding_passes(Generation(count, 400, 250), one, count // ranks))
    found = [simulated_passes(count, ranks, rows, seed) for seed in range(3)]
    assert passes == pytest.approx(sum(found) / len(found), rel=0.15)


def test_decoding_is_bound_by_weights_or_by_launches() -> None:
    answers = Generation(64, 100, 100)
    large, little = setup("Qwen/Qwen3-8B"), setup("Qwen/Qwen3-0.6B")
    launched = (100 * 64 / 60 + 240) * 28 * 0.6e-3  # 60 of 64 rows at work, and the longest answer
    assert work_seconds(answers, little) == pytest.approx(launched, rel=0.05)
    patient = little.planning.efficiency.model_copy(update={"launch_ms": 0.001})
    fast = replace(little, planning=little.planning.model_copy(update={"efficiency": patient}))
    assert work_seconds(answers, fast) < launched / 3
    assert work_seconds(answers, replace(large, ranks=4)) == pytest.approx(
        work_seconds(Generation(16, 100, 100), large)
    ), "copies share the prompts"
    assert work_seconds(Generation(0, 100, 100), large) == 0


def test_an_effort_sums_up() -> None:
    one = setup("Qwen/Qwen3-8B")
    works = [
        ("test", Generation(10, 100, 50)),
        ("training", Training(8, 100, 50, 2, 1)),
        ("pass", Pass(4, 9, 1)),
    ]
    found = effort(works, one)
    assert (found.generated, found.trained, found.read) == (500, 2400, 1040)
    assert found.seconds["load"] == pytest.approx(16.38 / 2, rel=1e-3) and found.seconds["start"] == 120
    assert found.hours == pytest.approx(sum(found.seconds.values()) / 3600)


# -- what stages compute


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_every_step_of_every_method_is_modelled(method: str) -> None:
    from lada.method import method_names

    assert set(EVERY_METHOD) == set(method_names())
    for settings in EVERY_METHOD[method]:
        config, plan = paper("1", method, *(f"method.{one}" for one in settings))
        run = Run(config, Planning())
        found = {stage: stage_work(run, stage) for group in plan.groups() for stage in group}
        assert [stage for stage, one in found.items() if one.unknown] == [], settings
        idle = {stage.step.split("_")[0] for stage, one in found.items() if not one.works}
        assert idle <= {"vote"}, settings
        if method not in ("standalone", "standalone_matched"):
            assert sum(one.texts + one.other for one in found.values()) > 0, settings


def test_a_step_that_nobody_modelled_is_named() -> None:
    config, plan = paper("3")
    strange = config.model_copy(update={"method": {"name": "mine"}})
    assert stage_work(Run(strange, Planning()), Stage(1, "guess", "server")).unknown
    found = estimate(strange, plan, load_cluster("a800"))
    assert found.unknown == ["learn", "respond"] and found.gpu_hours > 0


COUNTED = {
    "standalone": (),
    "fedkd": (),
    "sft": (),
    "socratic_cot": ("method.variant=concat",),
    "standalone_matched": (),
    "lada": ("method.use_filter=false",),
}


@pytest.fixture()
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Stage, Counter[str]]]:
    """Stage -> prompts answered, texts trained on (all epochs) and read without gradients."""
    import lada.forward
    import lada.generation
    import lada.stage

    found: dict[Stage, Counter[str]] = {}
    now: list[Counter[str]] = []
    run_stage, work, rows = lada.stage.run_stage, lada.generation._Work, lada.forward._rows

    def running(run: Any, stage: Stage, **rest: Any) -> bool:
        now[:] = [found.setdefault(stage, Counter())]
        return run_stage(run, stage, **rest)

    def answering(asked: Any, *rest: Any) -> Any:
        now[0]["generated"] += len(asked)
        return work(asked, *rest)

    def reading(model: Any, sequences: Any) -> Any:
        now[0]["trained" if torch.is_grad_enabled() else "read"] += len(sequences)
        return rows(model, sequences)

    monkeypatch.setattr(lada.stage, "run_stage", running)
    monkeypatch.setattr(lada.generation, "_Work", answering)
    monkeypatch.setattr(lada.forward, "_rows", reading)
    yield found


@pytest.mark.slow
@pytest.mark.usefixtures("smallest_lab", "no_fsync")
@pytest.mark.parametrize("method", COUNTED)
def test_stages_compute_what_the_plan_says(
    method: str, tmp_path: Path, counted: dict[Stage, Counter[str]]
) -> None:
    """As many prompts; of texts at most as many, since one that came to no end is not learnt."""
    from lada.layers import read_run
    from lada.plan import read_plan
    from tests.federation import drive, make
    from tests.smallest_models import SETTINGS

    folder = make(tmp_path, *SETTINGS, *COUNTED[method], small=False, method=method, scenario="1")
    drive(folder)
    run = Run(read_run(folder.root), Planning())
    planned = {stage: stage_work(run, stage) for group in read_plan(folder).groups() for stage in group}
    assert planned.keys() == counted.keys()
    for stage, one in planned.items():
        works = [work for _, work in one.works]
        generated = sum(work.count for work in works if isinstance(work, Generation))
        assert counted[stage]["generated"] == generated, stage
        trained = sum(work.count * work.epochs for work in works if isinstance(work, Training))
        assert (trained > 0) == (counted[stage]["trained"] > 0) and counted[stage]["trained"] <= trained, (
            stage
        )
        texts = [work for work in works if type(work) is Pass and work.response]
        read = sum(work.count for work in texts)
        assert counted[stage]["read"] * trained == read * counted[stage]["trained"], (
            f"{stage}: as many passes"
        )


# -- a whole run


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_fits_an_a800_node_per_party(scenario: str) -> None:
    config, plan = paper(scenario)
    zero_shot, one_shot = both_settings(config, plan, load_cluster("a800"))
    assert 15 < zero_shot.gpu_hours < one_shot.gpu_hours < 100
    assert zero_shot.wall_hours * zero_shot.most_gpus >= zero_shot.gpu_hours
    sent = sum(stage.bytes for stage in zero_shot.stages)
    assert 3e6 < sent < 30e6, "the paper's Fig. 5 says 3.57 to 6.71 MB"
    assert not zero_shot.unknown


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_every_method_fits_as_it_is_shipped(method: str) -> None:
    for scenario in SCENARIOS:
        for dataset in DATASETS:
            for one in both_settings(*paper(scenario, method, dataset=dataset), load_cluster("a800")):
                assert 0.3 < one.gpu_hours < 120 and one.most_gpus <= 16, scenario


def test_data_sets_have_lengths_of_their_own() -> None:
    found = [both_settings(*paper("1", dataset=one), load_cluster("a800"))[0] for one in DATASETS]
    prompts, rows = (130, 260), 1500  # the server's tests
    for one, prompt, response in zip(found, prompts, (250, 190), strict=True):
        (prepare,) = (each for each in one.of("server") if each.stage.step == "prepare")
        assert prepare.effort.generated == rows * response
        assert prepare.effort.read == rows * prompt + 1000 * prompt, "and features of the public questions"
    short, long = (one.parties[0].generation.parts["KV cache"] for one in found)
    assert long - short == pytest.approx(48 * 256 * 262_144 / 1e9), "questions of 768 tokens, not 512"


def test_prompts_with_many_examples_take_room() -> None:
    config, plan = paper("1", "wasp", "generation.prompt_tokens=null", "generation.batch_size=48")
    with pytest.raises(ConfigError, match=r"generation takes .*prompts.*SET generation.batch_size=12"):
        estimate(config, plan, load_cluster("a800"))


def test_lada_sends_less_than_fedkd_by_what_is_selected() -> None:
    cluster = load_cluster("a800")
    sent = {
        name: sum(stage.bytes for stage in estimate(*paper("1", name), cluster).stages)
        for name in ("lada", "fedkd")
    }
    assert sent["lada"] / sent["fedkd"] == pytest.approx(3.57 / 5.15, abs=0.03)


def test_adapters_are_published_whole_and_large_weight_deltas_as_a_hash() -> None:
    config, plan = paper("3")
    cluster, learn = load_cluster("a800"), Stage(1, "learn", "client-3")
    found = estimate(config, plan, cluster)
    (held,) = (one.setup for one in found.parties if one.party.name == "client-3")
    (sent,) = (one.extra_bytes for one in found.stages if one.stage == learn)
    assert config.exchange.max_delta_bytes < 4 * held.trained < sent < 4.04 * held.trained
    work = stage_work(Run(config, found.planning), learn)
    assert _extra_bytes(config, replace(held, lora=None), work) < 0.04 * held.trained


def test_what_is_committed_is_left_out() -> None:
    config, plan = paper("3")
    cluster = load_cluster("a800")
    done = next(iter(plan.groups()))
    whole, rest = estimate(config, plan, cluster), estimate(config, plan, cluster, done)
    assert {one.stage for one in whole.stages} - {one.stage for one in rest.stages} == set(done)
    assert rest.gpu_hours < whole.gpu_hours


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    config, plan = paper("2", "lada", "lora=null")
    with pytest.raises(ConfigError) as caught:
        estimate(config, plan, load_cluster("a800"))
    said = str(caught.value)
    assert "server, Qwen/Qwen2.5-72B-Instruct: training takes" in said and "it would fit with 64 GPUs" in said
    assert "client-1" not in said, "gemma-2-2b fits a GPU with all its states"
    assert said.count("SET lora=") == 3


def test_ranks_need_gpus_and_planning_needs_facts() -> None:
    config, plan = paper("4")
    cluster = load_cluster("a800")
    lines = tuple(line.model_copy(update={"gpus": 1}) for line in cluster.resources)
    with pytest.raises(ConfigError, match="4 ranks on 1 GPUs; each rank needs one"):
        estimate(config, plan, cluster.model_copy(update={"resources": lines}))
    with pytest.raises(ConfigError, match="no planning section"):
        estimate(config, plan, cluster.model_copy(update={"planning": None}))
