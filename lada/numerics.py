"""How exactly this machine multiplies matrices."""

from __future__ import annotations

import torch


def set_matmul_precision(wanted: str) -> tuple[str, float]:
    """Set float32 matrix products to ``wanted`` if they stay true float32 here, else to ``highest``.

    On CPUs without AMX, ``medium`` only picks a faster kernel; on others it computes in bfloat16
    (performance study, section 0). Returns what was set and the measured relative error.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = (a.double() @ b.double()).float()
    torch.set_float32_matmul_precision(wanted)
    error = float(((a @ b) - exact).norm() / exact.norm())
    if error < 1e-5:
        return wanted, error
    torch.set_float32_matmul_precision("highest")
    return "highest", error
