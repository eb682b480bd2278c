"""See ``pipelines.failpoints``; here for what may not import pipelines."""

from __future__ import annotations

from pipelines.failpoints import failpoint, name_of_caller

__all__ = ["failpoint", "name_of_caller"]
