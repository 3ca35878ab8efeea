"""One stage from inbox to commit, and the launcher that runs stages in this very process."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from lada.config import RunConfig
from lada.driver import Ended
from lada.errors import DeviceMemoryError, HostMemoryError, LadaError, NoSpaceError
from lada.exchange import commit, publish
from lada.gpus import stage_device
from lada.layers import read_run
from lada.manifest import Outbox
from lada.method import load_method
from lada.numerics import set_matmul_precision
from lada.party import ModelCache, Party, Reporter
from lada.plan import read_plan
from lada.policy import Change
from lada.progress import file_log
from lada.ranks import ALONE, Ranks
from lada.resume import Resume
from lada.rundir import RunDir, Stage
from lada.runs import model_folder
from lada.space import is_full


def run_stage(
    run: RunDir,
    stage: Stage,
    *,
    attempt: str,
    reporter: Reporter,
    log: Callable[[str], None],
    cache: ModelCache | None = None,
    warned: Callable[[], bool] = lambda: False,
    divisor: int = 1,
    ranks: Ranks = ALONE,
) -> bool:
    """Compute a stage, commit and publish it.

    Args:
        log: takes plain lines for a person.
        warned: whether this attempt must end soon; it then leaves a resume point.
        divisor: of the micro-batches of this attempt: less memory, the same effective batches, other last
            bits.
        ranks: that compute the stage, of which this one leads.

    Returns:
        Whether this attempt's work became the commit (another attempt may have been first).

    Raises:
        LadaError: when the configuration, the data or something that was read is wrong.
        ResourceError: when memory or disk space ran out.
        Paused: when the stage was warned.
    """
    with resource_errors(str(stage)):
        smaller = f", micro-batches divided by {divisor}" if divisor > 1 else ""
        several = f", {ranks}" if ranks.size > 1 else ""
        log(f"{stage} attempt {attempt} begins{smaller}{several}")
        config, plan = read_run(run.root), read_plan(run)
        method = load_method(config.method)
        set_numerics(config, ranks)
        earlier = plan.before(stage)
        party = Party(
            run,
            with_smaller_batches(config, divisor),
            plan,
            stage,
            options=method.options,
            model_folder=model_folder(config),
            reporter=reporter,
            cache=cache or ModelCache(ranks),
            resume=Resume(
                run, stage, attempt=attempt, earlier=earlier, warned=warned, log=log, computed_by=str(ranks)
            ),
        )
        outbox = method.step(stage.step).function("server" if party.role == "server" else "client")(party)
        first = _commit(run, stage, outbox, attempt=attempt, run_id=plan.run_id, inputs=party.inbox.read)
        publish(run, stage)
    shutil.rmtree(run.resume(stage), ignore_errors=True)
    return first


def follow_stage(run: RunDir, stage: Stage, ranks: Ranks) -> None:
    """Compute a stage as one of the ranks that another one leads.

    Raises:
        LadaError: as `run_stage` does.
        RanksError: when the leading rank is gone.
    """
    with resource_errors(f"{stage}, rank {ranks.index} of {ranks.size}"):
        set_numerics(read_run(run.root), ranks)
        ranks.follow()


def set_numerics(config: RunConfig, ranks: Ranks) -> None:
    """What run.yaml says about threads and products, for this process."""
    torch.set_num_threads(config.numerics.threads)
    set_matmul_precision(config.numerics.matmul_precision, stage_device(config.tier, ranks).type)


def _commit(
    run: RunDir, stage: Stage, outbox: Outbox, *, attempt: str, run_id: str, inputs: Mapping[str, str]
) -> bool:
    try:
        return commit(run, stage, outbox, attempt=attempt, run_id=run_id, inputs=inputs)
    except OSError:
        shutil.rmtree(run.staging(stage, attempt), ignore_errors=True)  # it may be what fills the disk
        raise


def with_smaller_batches(config: RunConfig, divisor: int) -> RunConfig:
    """The configuration with micro-batches and decoded rows divided, at least one of each."""
    kinds = {name: getattr(config.training, name) for name in type(config.training).model_fields}
    smaller = {
        name: one.model_copy(update={"micro_tokens": max(1, one.micro_tokens // divisor)})
        for name, one in kinds.items()
    }
    fewer = {"batch_size": max(1, config.generation.batch_size // divisor)}
    if config.generation.prompt_tokens is not None:
        fewer["prompt_tokens"] = max(1, config.generation.prompt_tokens // divisor)
    return config.model_copy(
        update={
            "training": config.training.model_copy(update=smaller),
            "generation": config.generation.model_copy(update=fewer),
        }
    )


_DEVICE_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_HOST_MEMORY = ("DefaultCPUAllocator: can't allocate memory",)
"""What torch says in a bare RuntimeError where memory ran out outside its GPU allocator."""


@contextlib.contextmanager
def resource_errors(what: str) -> Iterator[None]:
    """Inside, whatever says that memory or disk space ran out becomes a `ResourceError` of one line.

    Args:
        what: was at work.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(f"{what}: the GPU's memory ran out: {_first_line(error)}") from error
    except MemoryError as error:
        raise HostMemoryError(f"{what}: the host's memory ran out: {_first_line(error)}") from error
    except RuntimeError as error:
        if any(text in str(error) for text in _DEVICE_MEMORY):
            raise DeviceMemoryError(f"{what}: the GPU's memory ran out: {_first_line(error)}") from error
        if any(text in str(error) for text in _HOST_MEMORY):
            raise HostMemoryError(f"{what}: the host's memory ran out: {_first_line(error)}") from error
        raise
    except OSError as error:
        if is_full(error):
            raise NoSpaceError(f"{what}: {error.strerror}: {error.filename or 'no file named'}") from error
        raise


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class InProcess:
    """Launcher: a stage runs to its end inside `start`; models are kept between stages.

    Args:
        reporter: makes the display of a stage from its name and log file.
    """

    def __init__(self, run: RunDir, reporter: Callable[[Stage, str], Reporter]) -> None:
        self._run, self._reporter = run, reporter
        self._cache = ModelCache()
        self._ended: list[Ended] = []

    def start(self, stage: Stage, attempt: str, change: Change) -> dict[str, Any]:
        """Run a stage; its outcome is what `poll` returns next."""
        begun = time.monotonic()
        code, detail = 0, ""
        log = file_log(self._run.log(stage.party, stage, attempt))
        try:
            run_stage(
                self._run,
                stage,
                attempt=attempt,
                reporter=self._reporter(stage, attempt),
                log=log,
                cache=self._cache,
                divisor=change.micro_batch_divisor,
            )
        except LadaError as error:
            code, detail = error.exit_code, str(error)
        except OSError as error:  # a lost file server: the next attempt may find it well
            code, detail = 1, f"{type(error).__name__}: {error}"
        if code:
            log(f"failed: {detail}")
        self._ended.append(Ended(stage, code, detail, time.monotonic() - begun))
        return {}

    def adopt(self, stage: Stage) -> None:
        """Nothing to take over: a stage never outlives its process."""

    def poll(self) -> list[Ended]:
        """What ended since the last call."""
        ended, self._ended = self._ended, []
        return ended
