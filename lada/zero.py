"""The only importer of DeepSpeed: ZeRO shares optimiser states, gradients and weights among the ranks.

With one rank nothing of this is used. To DeepSpeed a model is one call with one result, so `one_pass` makes
one of all that is computed together: a body's pass and the head on top of it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from lada.config import TrainOptions
from lada.ranks import Ranks

if TYPE_CHECKING:
    from lada.language_model import LanguageModel

KEPT_WHOLE = 10_000
"""Numbers in a parameter that is not worth sharing: norms and biases."""
BUCKET = 500_000_000
"""Most numbers of a communication bucket: DeepSpeed's default, which it takes however little is trained."""
Pass = TypeVar("Pass", bound=Callable[..., Any])


def one_pass(function: Pass) -> Pass:
    """Let DeepSpeed see all that ``function(model, …)`` computes as one forward pass.

    What it returns must be tensors.
    """

    @functools.wraps(function)
    def wrapped(model: LanguageModel, *arguments: Any, **named: Any) -> Any:
        if model.engine is None or model.in_pass:
            return function(model, *arguments, **named)
        model.in_pass = True
        try:
            return model.engine(functools.partial(function, model, *arguments, **named))
        finally:
            model.in_pass = False

    return wrapped  # type: ignore[return-value]


class _Calls(nn.Module):
    """What DeepSpeed calls: runs a function that uses the modules inside."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class _Head(nn.Module):
    """An output projection that lends its weight to a function.

    Called as a module, so that DeepSpeed gathers the weight before, and again before the backward pass.
    """

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: Tensor, function: Callable[..., Any], *rest: Any) -> Any:
        return function(hidden, self.weight, *rest)


class ZeroOptimiser:
    """AdamW under DeepSpeed: what `Optimiser` is for weights that are whole and alone; same methods.

    A step differs from `Optimiser`'s in the last bits: gradients are averaged in buckets, and clipped by
    another rounding.
    """

    def __init__(self, model: LanguageModel, options: TrainOptions, learning_rate: float) -> None:
        self._model, self._ranks = model, model.ranks
        parameters = model.trainable()
        adam = torch.optim.AdamW(
            parameters,
            lr=learning_rate,
            betas=(0.9, 0.999),
            weight_decay=options.weight_decay,
            # The default step on a GPU holds a copy of each flat group meanwhile: up to 4 GB.
            fused=True if self._ranks.device.type == "cuda" else None,
        )
        if self._ranks.shards:
            detach(model)
            inside: nn.Module = model.network
        else:
            inside = nn.ParameterList(parameters)
        self._engine = model.engine = _engine(self._ranks, inside, adam, clip=options.clip_norm)

    def begin(self) -> None:
        """Forget the gradients."""
        self._engine.optimizer.zero_grad()

    def backward(self, part: Tensor, *, last: bool) -> None:
        """Add the gradients of a part of the objective; every rank must be at it."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(part * self._ranks.size)  # DeepSpeed takes the mean over the ranks

    def step(self, check: Callable[[float], None]) -> float:
        """Clip and step; returns the gradient's norm before clipping, once it has been checked."""
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        check(norm)
        return norm

    def state(self) -> dict[str, Tensor]:
        """This rank's share of states and of weights in float32."""
        found = {}
        for i, weights in enumerate(self._own_weights()):
            found[f"{i}.weights"] = weights.detach()
            found |= {f"{i}.{key}": value for key, value in self._adam.state[weights].items()}
        return found

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put a `state` back."""
        for i, weights in enumerate(self._own_weights()):
            mine = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{i}.")}
            weights.data.copy_(mine.pop("weights"))
            for key, value in mine.items():
                # A fused AdamW counts its steps on the device too.
                self._adam.state[weights][key] = value.to(weights.device)

    def close(self) -> None:
        """Free what is held; under ZeRO-3 the weights stay in shares."""
        detach(self._model)
        if self._ranks.shards:
            attach(self._model)

    @property
    def _adam(self) -> Any:
        return self._engine.optimizer.optimizer

    def _own_weights(self) -> list[Tensor]:
        """This rank's share of the trained weights, in float32."""
        zero = self._engine.optimizer
        found: list[Tensor]
        if self._ranks.shards:
            found = zero.fp32_partitioned_groups_flat
        elif hasattr(zero, "fp32_groups_flat_partition"):  # what it is for bfloat16 at stage 1
            found = zero.fp32_groups_flat_partition
        else:
            found = zero.single_partition_of_fp32_groups
        return found


# -- ZeRO-3


def shard(model: LanguageModel) -> None:
    """Cut the weights into shares, one per rank; from now on they are whole only where a pass needs them."""
    model.base.set_output_embeddings(_Head(model.head_weight))
    attach(model)


def sharing(ranks: Ranks) -> Callable[[nn.Parameter], None]:
    """What cuts a parameter into shares as soon as it is read: no rank ever holds all of them whole."""
    init = _deepspeed().zero.Init(config_dict_or_path=_config(ranks, clip=0.0, half=False))

    def share(parameter: nn.Parameter) -> None:
        init._convert_to_zero_parameters([parameter])

    return share


def attach(model: LanguageModel) -> None:
    """Have DeepSpeed gather weights for passes without gradients."""
    model.engine = _engine(model.ranks, model.network, None)


def detach(model: LanguageModel) -> None:
    """Take DeepSpeed's hooks off; the weights stay in shares."""
    if model.engine is None:
        return
    model.engine.destroy()
    model.engine = None
    for module in model.network.modules():
        # DeepSpeed would use these again, and through them the engine that is gone.
        for name in ("pre_bwd_fn", "post_bwd_fn"):
            module.__dict__.pop(name, None)


@contextlib.contextmanager
def whole(parameter: Tensor, *, write: bool = False) -> Iterator[None]:
    """Inside, a parameter has its whole content; what rank 0 writes there is kept."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    with _deepspeed().zero.GatheredParameters([parameter], modifier_rank=0 if write else None):
        yield


def deepspeed_version() -> str:
    """Imports DeepSpeed, which looks for the accelerator, and returns its version."""
    return str(_imported().__version__)


def _imported() -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    return deepspeed


def _deepspeed() -> Any:
    deepspeed = _imported()
    deepspeed.utils.logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # It would be compiled here and now, where there may be no compiler; gloo serves CPUs.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_init_required=False)
    return deepspeed


def _engine(ranks: Ranks, inside: nn.Module, optimiser: Any, *, clip: float = 0.0) -> Any:
    trained = [one for one in inside.parameters() if one.requires_grad]
    half = any(one.dtype == torch.bfloat16 for one in trained)
    # Shares have numel() 0, their wholes ds_numel.
    size = sum(getattr(one, "ds_numel", one.numel()) for one in trained)
    engine, *_ = _deepspeed().initialize(
        model=_Calls(inside),
        optimizer=optimiser,
        config=_config(ranks, clip=clip, half=half, size=size),
        dist_init_required=False,
    )
    return engine


def _config(ranks: Ranks, *, clip: float, half: bool, size: int = 0) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        half: weights in bfloat16 are trained, with a float32 copy.
        size: numbers that are trained: no bucket is made larger than that.
    """
    bucket = max(1, min(BUCKET, size))
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # micro-batches are counted here, not there
        "gradient_clipping": clip,
        "steps_per_print": None,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": half},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": ranks.zero,
            "overlap_comm": ranks.device.type == "cuda",
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_param_persistence_threshold": KEPT_WHOLE,
        },
    }
