"""The paper's tables from collected results; `build_all` builds those that can be built, names the others."""

from __future__ import annotations

from lada.report.layout import Entry, Table

__all__ = ["Entry", "Table"]
