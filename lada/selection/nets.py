"""ExploitNet predicts a sample's reward, ExploreNet what ExploitNet gets wrong (paper, Eqs. 8-10).

Dropout happens only where a generator is passed, so that a forward pass never reads global random state
and needs no train or eval mode.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional


def linear(inputs: int, outputs: int, generator: Generator, *, std: float | None = None) -> nn.Linear:
    """A linear layer drawn from ``generator``: uniform as torch's own, or normal with ``std``, bias 0."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        if std is None:
            bound = inputs**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
        else:
            layer.weight.normal_(0.0, std, generator=generator)
            layer.bias.zero_()
    return layer


def dropout(x: Tensor, rate: float, generator: Generator | None) -> Tensor:
    """Inverted dropout with ``generator``'s mask; the identity without one."""
    if generator is None or rate == 0:
        return x
    kept = torch.rand(x.shape, generator=generator) >= rate
    return x * kept / (1 - rate)


class Encoder(nn.Module):
    """Linear, GELU, LayerNorm: [B, inputs] to [B, width]."""

    def __init__(self, inputs: int, width: int, generator: Generator) -> None:
        super().__init__()
        self.linear = linear(inputs, width, generator)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Encode [B, inputs]."""
        encoded: Tensor = self.norm(functional.gelu(self.linear(x)))
        return encoded


class Block(nn.Module):
    """Residual block x <- LN(x + dropout(ReLU(W x + b))), with ``injected`` added before the ReLU."""

    def __init__(self, width: int, rate: float, generator: Generator) -> None:
        super().__init__()
        self.rate = rate
        self.linear = linear(width, width, generator)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, generator: Generator | None = None, injected: Tensor | None = None
    ) -> Tensor:
        """One block on [B, width]."""
        inner = self.linear(x) if injected is None else self.linear(x) + injected
        mixed: Tensor = self.norm(x + dropout(functional.relu(inner), self.rate, generator))
        return mixed


def head(width: int, bias: float, generator: Generator) -> nn.Linear:
    """The output layer: a constant ``bias`` plus next to nothing before training.

    Choice: weights are 0.1 times a normal draw of std 1/width. 0.1 times torch's default would spread
    untrained scores by .06 around the bias, too much for a threshold at .5.
    """
    layer = linear(width, 1, generator, std=0.1 / width)
    nn.init.constant_(layer.bias, bias)
    return layer


class ExploitNet(nn.Module):
    """Reward of a sample from its features (f1, Eq. 8)."""

    def __init__(
        self, input_size: int, *, width: int, blocks: int, dropout: float, generator: Generator
    ) -> None:
        super().__init__()
        self.encoder = Encoder(input_size, width, generator)
        self.blocks = nn.ModuleList(Block(width, dropout, generator) for _ in range(blocks))
        self.head = head(width, 0.5, generator)

    def forward(self, features: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Features [B, input_size] to predictions [B] and all blocks' activations [B, blocks * width]."""
        x = self.encoder(features)
        activations = []
        for block in self.blocks:
            x = block(x, generator)
            activations.append(x)
        prediction: Tensor = self.head(x).squeeze(-1)
        return prediction, torch.cat(activations, dim=-1)


class ExploreNet(nn.Module):
    """Signed error of ExploitNet from its activations (f2, Eq. 9), with a path to the input in each block."""

    def __init__(
        self, input_size: int, *, width: int, blocks: int, dropout: float, generator: Generator
    ) -> None:
        super().__init__()
        self.encoder = Encoder(input_size, width, generator)
        self.injections = nn.ModuleList(linear(input_size, width, generator) for _ in range(blocks))
        self.blocks = nn.ModuleList(Block(width, dropout, generator) for _ in range(blocks))
        self.head = head(width, 0.0, generator)

    def forward(self, activations: Tensor, generator: Generator | None = None) -> Tensor:
        """Activations [B, input_size] to predictions [B]; no gradient flows into the activations."""
        inputs = activations.detach()
        x = self.encoder(inputs)
        for injection, block in zip(self.injections, self.blocks, strict=True):
            x = block(x, generator, injection(inputs))
        prediction: Tensor = self.head(x).squeeze(-1)
        return prediction
