"""Structured logs to standard error: JSON lines for machines, readable lines on a terminal.

In: ``LogConfig`` and events from ``structlog.get_logger("node.…")``. Out: one line an event. An event has a
snake_case name and key=value context. UIDs and hashes may appear in it; patient data may not (DESIGN I8).
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from node.config import LogConfig

#: Our own packages speak at the configured level; every library is heard from ``warning`` upwards, because
#: pynetdicom's and pydicom's lower levels print data sets.
_OWN_LOGGERS = ("node", "pipelines")
#: Libraries that set handlers or levels of their own, which ours replace.
_LIBRARY_LOGGERS = ("dbos", "pydicom", "pynetdicom", "uvicorn", "uvicorn.access", "uvicorn.error")


def configure_logging(config: LogConfig, *, stream: TextIO | None = None) -> None:
    """Route structlog and standard-library logging to ``stream`` (default: standard error).

    Format ``auto`` is readable when the stream is a terminal and JSON otherwise. May be called again.
    """
    target = sys.stderr if stream is None else stream
    console = config.format == "console" or (config.format == "auto" and target.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=target.isatty(), timestamp_key="time")]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(config.level.upper())
    for name in _LIBRARY_LOGGERS:
        library = logging.getLogger(name)
        # attached, not propagated to: DBOS brings a handler of its own where it finds none
        library.handlers[:] = [handler]
        library.propagate = False
        library.setLevel(logging.WARNING)
    # pydicom's warnings quote the attribute value that it finds odd: patient data, so none of them is shown.
    logging.captureWarnings(True)
    for name in ("py.warnings", "pydicom"):
        logging.getLogger(name).setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
