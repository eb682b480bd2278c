"""Log lines: JSON, levels, and no library that quotes patient data."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog
from pydicom.dataelem import DataElement

from node.config import LogConfig
from node.log import configure_logging


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Restores the process's logging afterwards."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    yield io.StringIO()
    root.handlers[:], level = before
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in ("dbos", "pydicom", "pynetdicom", "uvicorn", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(logging.NOTSET)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines(stream: io.StringIO) -> None:
    configure_logging(LogConfig(format="auto"), stream=stream)
    structlog.get_logger("node.receive").info("series_complete", series_instance_uid="1.2.3", instances=3)
    (line,) = lines(stream)
    assert line["event"] == "series_complete"
    assert (line["series_instance_uid"], line["instances"]) == ("1.2.3", 3)
    assert (line["level"], line["logger"]) == ("info", "node.receive")
    assert str(line["time"]).endswith("Z")


def test_console(stream: io.StringIO) -> None:
    configure_logging(LogConfig(format="console"), stream=stream)
    structlog.get_logger("node").warning("something_odd", code="x")
    assert "something_odd" in stream.getvalue() and "code=x" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_levels(stream: io.StringIO) -> None:
    configure_logging(LogConfig(level="warning"), stream=stream)
    structlog.get_logger("node").info("quiet")
    logging.getLogger("pynetdicom.acse").info("a data set")
    logging.getLogger("pynetdicom.acse").error("rejected")
    logging.getLogger("dbos").warning("recovered")
    assert [line["event"] for line in lines(stream)] == ["rejected", "recovered"]


def test_exceptions_are_part_of_the_line(stream: io.StringIO) -> None:
    configure_logging(LogConfig(), stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("node").error("failed", exc_info=True)
    (line,) = lines(stream)
    assert "ValueError: broken" in str(line["exception"])


def test_values_that_pydicom_finds_odd_stay_out(stream: io.StringIO) -> None:
    configure_logging(LogConfig(level="debug"), stream=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        DataElement(0x00100020, "UI", "DOE^JOHN")
    assert stream.getvalue() == ""
