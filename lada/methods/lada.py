"""LaDa: bidirectional reasoning distillation on samples that a learned filter allocates (paper, Section IV).

Round 0, ``prepare``: local fine-tuning makes each client's reference policy; prototypes select for round 1.
Every round, ``respond``: each party answers what it selected itself and what others asked of it. ``learn``:
it trains on (preferred = the partner's text, non-preferred = its own), rewards the selection, teaches the
filters, is measured, and selects for the next round. The steps are those of `lada.plugin`, whose parts other
methods can host.
"""

from __future__ import annotations

from lada import plugin
from lada.plugin_options import LaDaOptions

Config = LaDaOptions
STEPS = plugin.STEPS
