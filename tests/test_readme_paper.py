"""README's "From clone to Table II": its commands are commands, and its figures are what the plan says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

import jobs.__main__
import lada.__main__
import lada.report.__main__
from jobs.cluster import load_cluster
from jobs.paper_plan import Estimate, estimate
from lada.model_facts import known_models, model_facts
from lada.report.readme import fill
from lada.staged import models_of
from tests.test_make import clone, make
from tests.test_paper_arms import gpu_hours
from tests.test_workload import paper

__all__ = ["clone"]  # a fixture
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## From clone to Table II on your cluster\n", 1)[1].split("\n## ")[0]
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
    for line in block.splitlines()
]
METHODS = ("standalone", "fedkd", "fedmkt", "wasp", "lada", "sft", "socratic_cot", "rstar")
TABLE2 = [(scenario, method, shots) for scenario in "1234" for method in METHODS[:5] for shots in (0, 1)]
PARSERS = {
    "jobs": jobs.__main__.parser,
    "lada": lada.__main__._parser,
    "lada.report": lada.report.__main__.parser,
}


@cache
def planned(scenario: str, method: str, shots: int) -> Estimate:
    return estimate(*paper(scenario, method, f"shots={shots}"), load_cluster("a800"))


def hours_table() -> str:
    """The table between the marks, of what `make plan` sums."""
    lines = ["| method | scenario 1 | scenario 2 | scenario 3 | scenario 4 |", "|---|--:|--:|--:|--:|"]
    for method in METHODS:
        cells = [
            " / ".join(f"{planned(scenario, method, shots).gpu_hours:.0f}" for shots in (0, 1))
            for scenario in "1234"
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


# -- commands


def test_the_way_is_whole() -> None:
    targets = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    way = ["stage", "image", "doctor", "rehearsal-models", "plan", "submit", "matrix", "collect", "tables"]
    assert [target for target in dict.fromkeys(targets) if target in way] == way
    assert COMMANDS[0] == "cp configs/clusters/a800.yaml configs/clusters/mine.yaml"


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("make ")])
def test_make_turns_each_command_into_one_that_its_program_takes(command: str, clone: Path) -> None:
    (clone / "configs" / "clusters" / "mine.yaml").write_bytes(
        (ROOT / "configs" / "clusters" / "a800.yaml").read_bytes()
    )
    shown = make(clone, f"-n {command.removeprefix('make ')}")
    assert shown.returncode == 0, shown.stderr
    programs = re.findall(r"-m (jobs|lada\.report|lada) ([^\n]*)", shown.stdout)
    asks_a_program = not command.startswith(("make setup", "make image"))
    assert bool(programs) == asks_a_program, shown.stdout
    for program, arguments in programs:
        options = PARSERS[program]().parse_args(shlex.split(arguments))
        for key, value in re.findall(r"\b(TIER|MATRIX|CLUSTER)=(\S+)", command):
            name = "name" if key == "MATRIX" else key.lower()
            assert getattr(options, name, value) == value, f"{key}= is lost: {arguments}"


def test_the_hub_s_own_program_comes_with_the_host_s_packages() -> None:
    (command,) = (one for one in COMMANDS if not one.startswith(("make ", "cp ")))
    assert command == ".venv/bin/hf auth login"
    assert "huggingface_hub" in (ROOT / "containers" / "requirements-host.in").read_text()


def test_a_login_node_without_models_is_told_what_is_missing(clone: Path, tmp_path: Path) -> None:
    """Steps 0, 2 and 4 for real, on a cluster file filled in like the example."""
    content = (ROOT / "configs" / "clusters" / "a800.yaml").read_text()
    models = tmp_path / "models"
    (clone / "configs" / "clusters" / "mine.yaml").write_text(content.replace("/shared/models", str(models)))
    doctor = json.loads(make(clone, f"doctor CLUSTER=mine RUNS={tmp_path}/runs WAIT=0 JSON=1").stdout)
    said = {check["subject"]: f"{check['text']} {check['mend']}" for check in doctor["checks"]}
    assert "make stage" in said["models"] and "make rehearsal-models CLUSTER=mine" in said["models"]
    assert "make image" in said["image"]
    plan = make(clone, f"plan SCENARIO=1 CLUSTER=mine TIER=rehearsal RUNS={tmp_path}/runs JSON=1")
    assert len(json.loads(plan.stdout)["stages"]) == 20, plan.stderr


@pytest.mark.slow
def test_rehearsal_models_are_made_and_the_refusal_is_the_shown_one(clone: Path, tmp_path: Path) -> None:
    without = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYTEST"))}
    made = subprocess.run(
        ["make", "rehearsal-models", "SCENARIO=3", f"MODELS={tmp_path}/models", "CLUSTER="],
        cwd=clone,
        env=without,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0 and "4 of 4 rehearsal models made" in made.stdout, made.stderr
    (shown,) = re.findall(r"```text\n\$ (make plan .*?)\n(.*?)```", SECTION, re.DOTALL)
    refused = make(clone, f"{shown[0].removeprefix('make ')} RUNS={tmp_path}/runs")
    assert refused.returncode != 0
    said, expected = (" ".join(text.split()) for text in (refused.stderr, shown[1]))
    for part in expected.split("…"):
        assert part.strip(" .") in said


# -- figures


def filled(text: str) -> str:
    """README with its hours as `make plan` prints them; `python -m tests.test_readme_paper` writes it."""
    one, wall = planned("1", "lada", 0), 3 * sum(planned(*each).wall_hours for each in TABLE2)
    most = max(planned(*each).most_gpus for each in TABLE2)
    run = f"{one.most_gpus} GPUs at a time | {one.wall_hours:.1f} h | 19 GB | {one.gpu_hours:.1f} |"
    hours = f"{gpu_hours('table2'):,.0f}"
    runs = f"up to {most} GPUs a run | {wall:.0f} h one run after another | 2 TB | {hours} |"
    text = re.sub(r"(?m)^(\| 5\. one run: [^|]*\| ).*$", lambda found: found[1] + run, text)
    text = re.sub(r"(?m)^(\| 6\. Table II: [^|]*\| ).*$", lambda found: found[1] + runs, text)
    return fill(text, {"gpu-hours": hours_table()})


def test_hours_are_the_plan_s() -> None:
    assert "| 19 GB | " in SECTION and "| 2 TB | " in SECTION and "<!-- gpu-hours -->" in SECTION
    assert filled(README) == README, "write it anew: python -m tests.test_readme_paper"


def test_disk_is_the_models_parameters_in_two_bytes() -> None:
    """As published: Gemma's base models in four."""
    found = dict(re.findall(r"^\| (scenario \d|all ten) \| (\d+ GB \| \d+ GB) \|$", SECTION, re.MULTILINE))
    sets = {f"scenario {name}": models_of([name]) for name in "1234"} | {"all ten": list(known_models())}
    for name, models in sets.items():
        sizes = {model: 2 * model_facts(model).architecture.parameters for model in models}
        gemma = sum(size for model, size in sizes.items() if "gemma" in model)
        assert (
            found[name]
            == f"{sum(sizes.values()) / 1e9:.0f} GB | {(sum(sizes.values()) + gemma) / 1e9:.0f} GB"
        )


if __name__ == "__main__":
    (ROOT / "README.md").write_text(filled(README), encoding="utf-8")
