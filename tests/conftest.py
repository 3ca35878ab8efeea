"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lada.rundir import RunDir
from tests.warm import Warm

if TYPE_CHECKING:  # a host's own environment has no torch
    from lada.language_model import LanguageModel
    from tests.staging_site import Site

with contextlib.suppress(ModuleNotFoundError):  # a host's own environment, on a cluster, has no hypothesis
    from hypothesis import settings

    settings.register_profile("suite", deadline=None, derandomize=True)
    settings.load_profile("suite")


@pytest.fixture()
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written but not forced to the disk: what is tested here does not lose power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def smallest_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like lada/lab/weights, with random models that take milliseconds."""
    from tests.smallest_models import write_models

    folder = tmp_path_factory.mktemp("smallest-models")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def smallest_lab(smallest_models: Path) -> Iterator[Path]:
    """Runs of this module use `smallest_models` in place of the committed weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADA_LAB_WEIGHTS", str(smallest_models))
        yield smallest_models


@pytest.fixture(scope="module")
def writing_lab(smallest_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """As `smallest_lab`, but the server's model is the committed one: only that can write a question."""
    from lada.lab import WEIGHTS

    folder = tmp_path_factory.mktemp("writing-lab")
    for path in smallest_models.iterdir():
        source = WEIGHTS if path.name == "qwen3-32b" else smallest_models
        (folder / path.name).symlink_to(source / path.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADA_LAB_WEIGHTS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def tiny_run(smallest_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunDir]:
    """Makes the folder of a run that takes about a second: ``tiny_run(name, *settings)``."""
    from tests.federation import make
    from tests.smallest_models import SETTINGS

    return lambda name, *more: make(tmp_path_factory.mktemp(name), *SETTINGS, *more, small=False)


@pytest.fixture()
def staging_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Site]:
    """Folders, a lock file and a hub on this machine for `make stage`; see tests/staging_site.py."""
    from tests.fake_hub import serve
    from tests.staging_site import prepare

    with serve() as hub:
        yield prepare(tmp_path, hub, monkeypatch, capsys.readouterr)


@pytest.fixture(scope="session")
def warm(smallest_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Runs ``python -m lada`` with `smallest_models`, quickly and killably; see tests/warm.py."""
    found = Warm(tmp_path_factory.mktemp("warm"), {"LADA_LAB_WEIGHTS": str(smallest_models)})
    yield found
    found.close()


@pytest.fixture(scope="module")
def lab_llm() -> Iterator[LanguageModel]:
    """The committed stand-in of Qwen3-32B, on one thread."""
    import torch

    from lada.lab import WEIGHTS
    from lada.loading import load_model

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model(WEIGHTS / "qwen3-32b")
    torch.set_num_threads(threads)
