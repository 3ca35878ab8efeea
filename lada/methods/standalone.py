"""Standalone: each client trains on its own questions alone; the LLM stays as it came (baselines, section 2).

No party sends anything.
"""

from __future__ import annotations

from lada.config import Options
from lada.local import prepare_client, prepare_server
from lada.method import Step


class Config(Options):
    """Standalone has no options of its own; `local` and `training.local` decide it."""


STEPS = (Step("prepare", server=prepare_server, client=prepare_client, once=True),)
