"""What the steps of a job have in common: what they answer, and how whatever goes wrong in them is caught."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import structlog
from sqlalchemy import Connection, Engine, Row

from node.database import write_transaction
from node.errors import NodeError
from node.run.membership import Membership

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


class TakenOver(Exception):
    """Another node goes on with what this run began."""


@dataclass(frozen=True)
class Run:
    """One call of ``Steps.execute``: it counts while job and node stand as they did at its beginning."""

    job: Row[Any]
    epoch: int | None

    @property
    def folder(self) -> Path:
        """Of the result set, relative to data_dir."""
        return Path("results") / str(self.job.job_id)


@contextmanager
def ours(engine: Engine, membership: Membership | None, epoch: int | None) -> Iterator[Connection]:
    """A transaction in which a run that began with this epoch is ours to finish, and nobody can take it over
    before the transaction's end. Raises TakenOver."""
    with write_transaction(engine) as connection:
        if membership is not None and epoch is not None and not membership.is_current(connection, epoch):
            raise TakenOver
        yield connection


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
