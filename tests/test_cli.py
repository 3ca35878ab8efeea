"""The command line: what a person sees, exit codes, and every command that README shows."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError

import pytest

from lada import provenance
from lada.__main__ import main
from lada.errors import exit_code
from lada.method import describe_methods, method_names
from lada.rundir import RunDir
from tests.smallest_models import SETTINGS

pytestmark = pytest.mark.usefixtures("smallest_lab")
DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[1].parent / "shared" / "data"


NEEDED = {"fedmkt": ("method.label_source=oracle",)}
"""Models that are never right end no text with a letter to vote for."""


def arguments(runs: Path, *more: str, scenario: str = "one-client", method: str = "lada") -> list[str]:
    settings = " ".join([*SETTINGS, "rounds=1", *NEEDED.get(method, ())])
    more = ("--method", method, *more)
    return ["run", "--scenario", scenario, "--size", "tiny", "--runs", str(runs), "--set", settings, *more]


@pytest.mark.slow
def test_run_ends_with_the_table_and_again_says_that_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path)) == 0
    shown = capsys.readouterr().out
    for text in (
        "server",
        "client-1",
        "Meta-Llama-3-8B",
        "±",
        "Exchanged in all",
        "metrics.csv",
        "No real weights",
    ):
        assert text in shown
    assert main(arguments(tmp_path)) == 0
    again = capsys.readouterr().out
    assert "Nothing is left to do" in again and "committed (" not in again
    (run,) = [path.parent for path in tmp_path.glob("*/run.yaml")]
    assert main(["show", str(run)]) == 0
    assert "±" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("method", method_names())
def test_every_method_runs_from_the_command_line(method: str, tmp_path: Path) -> None:
    assert main(arguments(tmp_path, method=method)) == 0


@pytest.mark.slow
def test_one_shot_other_dataset_and_a_stopped_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--shots", "1", "--dataset", "lab-cot", "--seed", "3")
    assert main(arguments(tmp_path, *more, "--until-round", "0")) == 0
    assert "r01" not in capsys.readouterr().out
    assert main(arguments(tmp_path, *more)) == 0
    shown = capsys.readouterr().out
    assert "one-shot" in shown and "seed 3" in shown and "server/r01-learn committed" in shown


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["1", "2", "3", "4", "five-clients"])
def test_every_scenario_runs(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, "--method", "standalone", scenario=scenario)) == 0
    assert f"scenario {scenario}," in capsys.readouterr().out


@pytest.mark.slow
def test_a_federation_on_real_questions_says_that_the_models_do_not_know_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = SHARED / "mathinstruct_sample.json"
    if not file.is_file():
        pytest.skip("../shared/data/mathinstruct_sample.json is not beside this checkout")
    assert main(arguments(tmp_path, "--dataset", "mathinstruct", "--data", str(file))) == 0
    shown = capsys.readouterr().out
    assert "not trained for this dataset" in shown and "±" in shown


def test_fresh_sets_the_old_run_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["init", *arguments(tmp_path)[1:]]
    assert main(command) == 0
    first = Path(capsys.readouterr().out.strip())
    (first / "mark").touch()
    assert main([*command, "--fresh"]) == 0
    assert not (first / "mark").exists()
    assert first.with_name(f"{first.name}.old-1").is_dir()


def test_changed_code_stops_a_run_until_someone_insists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["init", *arguments(tmp_path)[1:]]
    assert main(command) == 0
    monkeypatch.setattr("lada.provenance.code_hash", lambda: "f" * 64)
    assert main(command) == 8
    message = capsys.readouterr().err
    assert "code:" in message and "AMEND=1" in message and "FRESH=1" in message
    assert main([*command, "--amend"]) == 0
    assert main(command) == 0


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--scenario", "9"), 2, "Legal: 1, 2, 3, 4"),
        (("--method", "ladda"), 2, "legal: fedkd, fedmkt, lada"),
        (("--size", "huge"), 2, "legal: tiny, quick, paper"),
        (("--set", "method.bta=1"), 2, "did you mean 'beta'?"),
        (("--set", "rouns=1"), 2, "did you mean 'rounds'?"),
        (("--dataset", "mathinstruct"), 2, "DATA="),
        (("--dataset", "mathinstruct", "--data", "/no/such/file.json"), 3, "/no/such/file.json"),
    ],
)
def test_mistakes_end_with_their_exit_code_and_say_what_is_legal(
    more: tuple[str, ...], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(tmp_path), *more]) == code
    assert words in capsys.readouterr().err.replace("\n", " ")


def test_a_folder_that_cannot_be_written_is_named_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs"
    file.write_text("not a folder\n")
    assert main(["init", *arguments(file)[1:]]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith(f"{file}/") and said[0].endswith(": Not a directory")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_while_a_run_is_made_ends_with_its_exit_code(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", full)
    assert main(["init", *arguments(tmp_path)[1:]]) == 12
    assert capsys.readouterr().err == f"{os.strerror(number)}\n"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError("a library's own words"),
        HTTPError("https://hub", 500, "broken", Message(), None),
    ],
)
def test_an_error_that_the_system_says_of_no_file_keeps_its_traceback(error: OSError) -> None:
    def command() -> int:
        raise error

    with pytest.raises(type(error)):
        exit_code(command)


def test_a_run_whose_provenance_is_gone_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["init", *arguments(tmp_path)[1:]]
    assert main(command) == 0
    run = RunDir(Path(capsys.readouterr().out.strip()))
    run.provenance_json.unlink()
    for more in ((), ("--amend",)):
        assert main([*command, *more]) == 8
        said = capsys.readouterr().err
        assert str(run.provenance_json) in said and "FRESH=1" in said
    now = {"code": "", "packages": {}, "weights": {}, "image": None, "run_yaml": "", "config": {}}
    remark = provenance.check(run, now, amend=False, finished=True)
    assert remark is not None and "nothing says what made this run" in remark


@pytest.mark.parametrize("name", ["mathinstruct", "cot_collection", "aqua_rat"])
def test_data_parse_writes_a_line_per_record(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = next(path for path in sorted(DATA.glob(f"{name}.json*")))
    out = tmp_path / "out.jsonl"
    assert main(["data", "parse", str(source), "--format", name, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(set(row) == {"row", "status", "reason", "question", "options", "answer"} for row in rows)
    counts = [int(found) for found in re.findall(r"^ *(\d+) ", capsys.readouterr().out, re.MULTILINE)]
    assert sum(counts) == len(rows) and any(row["status"] == "accepted" for row in rows)


def test_methods_lists_every_option_with_default_and_meaning() -> None:
    text = "\n".join(describe_methods())
    for line in ("method.beta=0.1", "method.reward.profile=paper", "standalone_matched:", "next_set"):
        assert line in text
    bare = [line for line in describe_methods() if line.startswith("    ") and "  " not in line.strip()]
    assert not bare, f"options without a meaning: {bare}"


def test_a_reader_that_has_seen_enough_ends_a_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "lada", "matrix", "table2", "--list"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
