"""Three ranks compute what one does; two go on where they paused, in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rank_work import write_models
from tests.test_ranks import check_ranks
from tests.torchruns import torchrun

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("more-ranks")]

THREE = ("llama-full-z0", "qwen3-lora-z1", "gemma2-full-z2", "gemma2-full-z3", "qwen3-drop-z3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def test_three_ranks_compute_what_one_does(models: Path, tmp_path: Path) -> None:
    check_ranks(3, THREE, models, tmp_path)


def test_training_in_bfloat16_goes_on_where_it_paused(models: Path, tmp_path: Path) -> None:
    names = ("llama-half-z1", "llama-half-z2", "llama-half-z3")
    torchrun(2, "tests.rank_pauses", str(models), str(tmp_path), *names)
    for name in names:
        undisturbed, again, pauses = json.loads((tmp_path / f"{name}.json").read_text())
        assert again == undisturbed, name
        assert pauses == 2
