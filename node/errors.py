"""Exceptions of the node.

    NodeError
    ├── ConfigError          the configuration file; names file, field, value and what is allowed; exit code 2
    ├── SpoolError           an instance couldn't be made durable
    │   └── OutOfSpace       the disk is below its floor; C-STORE answers 0xA700
    ├── InstanceRejected     an instance can't be filed; quarantined with ``code``
    ├── TritonStartError     the embedded Triton didn't become ready
    ├── WorkerCrashed        the pipeline process died; retried
    ├── QueryError           a query AE didn't answer, or not usefully; asked again later
    └── DeliveryError        a destination didn't take an object; ``retryable`` says whether to try again

Every error has a stable ``code``, a ``hint`` (what to do) and ``retryable``.
"""

from __future__ import annotations


class NodeError(Exception):
    """Base of all node errors."""

    code = "node_error"
    retryable = False

    def __init__(
        self, message: str, *, hint: str = "", code: str | None = None, retryable: bool | None = None
    ) -> None:
        super().__init__(message)
        self.hint = hint
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable


class ConfigError(NodeError):
    """The configuration is unusable."""

    code = "configuration"


class SpoolError(NodeError):
    """Received bytes couldn't be stored durably."""

    code = "spool_error"
    retryable = True


class OutOfSpace(SpoolError):
    """Free disk space is below the configured floor."""

    code = "out_of_space"


class InstanceRejected(NodeError):
    """An instance can't be filed under a series; it goes to quarantine with this code.

    study_instance_uid: of its study, where that can be told.
    """

    code = "instance_rejected"
    study_instance_uid: str | None = None


class TritonStartError(NodeError):
    """The embedded Triton server didn't start or didn't become ready."""

    code = "triton_start"
    retryable = True


class WorkerCrashed(NodeError):
    """The process that runs pipelines ended in the middle of a job."""

    code = "worker_crashed"
    retryable = True


class QueryError(NodeError):
    """A query AE didn't answer, or not usefully. Codes: unreachable, rejected, refused, timeout, broken."""

    code = "query_failed"
    retryable = True


class DeliveryError(NodeError):
    """A destination refused an object or couldn't be reached.

    retry_after_seconds: when the destination asks to be tried again, if it said so.
    """

    code = "delivery_failed"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, code=code, retryable=retryable)
        self.retry_after_seconds = retry_after_seconds
