"""The lab tier: tiny models of the ten models of Table I, pre-trained here from scratch; weights committed.

Re-make them with ``make lab-models`` (``python -m lada.lab [MODEL ...]``). Importing this needs no torch.
The environment variable ``LADA_LAB_WEIGHTS`` names a folder that replaces the committed one (same layout: one
sub-folder per model); tests use it for models that are smaller still.
"""

from __future__ import annotations

import os
from pathlib import Path

from lada.data.lab_facts import MODELS as LAB_MODELS
from lada.data.lab_facts import short_name

__all__ = ["LAB_MODELS", "WEIGHTS", "short_name", "weights_folder"]

WEIGHTS = Path(__file__).parent / "weights"
"""One folder per model: config.json, tokenizer.json, model.safetensors, manifest.json."""


def weights_folder(model: str) -> Path:
    """Folder of a lab model, given by its Hugging Face id or its short name (see `LAB_MODELS`).

    Raises:
        ConfigError: when there is no such lab model; lists the legal names.
    """
    return Path(os.environ.get("LADA_LAB_WEIGHTS", WEIGHTS)) / short_name(model)
