"""What the steps of a job have in common: what they answer, and how whatever goes wrong in them is caught."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

import structlog

from node.errors import NodeError

log = structlog.get_logger(__name__)

#: the states of a job in which a step has something to do
ACTIVE = ("queued", "running", "delivering")


class Next(TypedDict):
    """What a step asks of the workflow: deliver to ``destinations``, and/or the same step again later.

    failures: how many of the attempts so far count against ``run.max_attempts``.
    """

    destinations: list[str]
    retry_in_seconds: float | None
    failures: int


STOP = Next(destinations=[], retry_in_seconds=None, failures=0)


def again_in(seconds: float) -> Next:
    """The same step, later."""
    return Next(destinations=[], retry_in_seconds=seconds, failures=0)


@contextmanager
def recorded(*passing: type[Exception]) -> Iterator[None]:
    """The boundary of a step: every failure leaves it as a NodeError, which the job then records.

    passing: what isn't a failure.
    """
    try:
        yield
    except NodeError:
        raise
    except OSError as error:
        raise NodeError(
            f"{error.filename or 'data_dir'}: {error.strerror or type(error).__name__}",
            code="io_error",
            hint="is the disk full or read-only, or was a file removed?",
            retryable=True,
        ) from error
    except Exception as error:
        if isinstance(error, passing):
            raise
        # frames only: the message may quote patient data
        log.error("step_broke", error=type(error).__name__, frames=traceback.format_tb(error.__traceback__))
        raise NodeError(
            f"unexpected {type(error).__name__}",
            code="internal",
            hint="a defect of ours: the log has the traceback",
        ) from error
