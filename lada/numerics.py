"""How exactly this machine multiplies matrices."""

from __future__ import annotations

import torch


def set_matmul_precision(wanted: str, device: str = "cpu") -> tuple[str, float]:
    """Set float32 matrix products to ``wanted`` if they stay true float32 here, else to ``highest``.

    On CPUs without AMX, ``medium`` only picks a faster kernel; on others it computes in bfloat16
    (performance study, section 0). On GPUs everything but ``highest`` means TF32, with 10 bits of mantissa.

    Choice: on a GPU it is ``highest`` whatever is wanted, so that adapters are trained in true float32.

    Args:
        device: ``cpu`` or ``cuda``: where the process computes.

    Returns:
        What was set, and the relative error of a product on this CPU.
    """
    wanted = "highest" if device == "cuda" else wanted
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = (a.double() @ b.double()).float()
    torch.set_float32_matmul_precision(wanted)
    error = float(((a @ b) - exact).norm() / exact.norm())
    if error < 1e-5:
        return wanted, error
    torch.set_float32_matmul_precision("highest")
    return "highest", error
