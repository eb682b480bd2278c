"""The response to STOW-RS: HTTP's status, and the Store Instances Response Module (PS3.18 10.5.3, annex I).

In: a response.  Out: a status of each instance as C-STORE would give it, or the DeliveryError of all of them.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from node.errors import DeliveryError

_FAILED_SOP_SEQUENCE, _REFERENCED_SOP_SEQUENCE = "00081198", "00081199"
_REFERENCED_SOP_INSTANCE_UID = "00081155"
_WARNING_REASON, _FAILURE_REASON = "00081196", "00081197"

#: the statuses whose body says what became of each instance (PS3.18 table 10.5.3-1)
_DETAILED = frozenset((200, 202, 409))
_STORED, _PROCESSING_FAILURE, _CANNOT_UNDERSTAND = 0x0000, 0x0110, 0xC000

#: HTTP status -> whether the same request may succeed later, and what to do (RFC 9110 15.5 and 15.6)
_REMEDIES = {
    400: (False, "the server's log says what it can't read"),
    401: (True, "renew the token"),
    403: (False, "allow us to store at the server"),
    404: (True, "is url the address of the DICOMweb service, without /studies?"),
    405: (False, "the server doesn't offer STOW-RS at url"),
    406: (False, "the server has to offer application/dicom+json"),
    408: (True, "the server gave up waiting: is the network slow?"),
    413: (False, "lower max_request_bytes, or raise the server's limit"),
    415: (False, "allow the SOP classes and transfer syntaxes at the server"),
    429: (True, "lower concurrency or max_instances_per_second"),
    501: (False, "the server doesn't offer STOW-RS at url"),
}
_LATER = (True, "the server's log says what is wrong with it")
_NEVER = (False, "the server's log says why")


@dataclass(frozen=True)
class Answer:
    """What was said of instances by their UID; ``others``: the status of those that weren't mentioned."""

    statuses: Mapping[str, int]
    others: int

    def status_of(self, sop_instance_uid: str) -> int:
        return self.statuses.get(sop_instance_uid, self.others)


def read_answer(response: httpx.Response) -> Answer | None:
    """None where the response doesn't speak of instances: see ``error_of``."""
    if response.status_code not in _DETAILED:
        return None
    try:
        module = json.loads(response.content)
        module = module[0] if isinstance(module, list) else module
        failed = dict(_statuses(module, _FAILED_SOP_SEQUENCE, _FAILURE_REASON, _PROCESSING_FAILURE))
        stored = dict(_statuses(module, _REFERENCED_SOP_SEQUENCE, _WARNING_REASON, _STORED))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Answer({}, _STORED) if response.status_code == 200 else None
    others = {200: _STORED, 202: _PROCESSING_FAILURE, 409: _CANNOT_UNDERSTAND}[response.status_code]
    return Answer({**stored, **failed}, others)


def _statuses(
    module: Mapping[str, Any], sequence: str, reason: str, default: int
) -> Iterator[tuple[str, int]]:
    """Of the items of a sequence: SOP Instance UID, and the reason, or ``default`` where it has none."""
    for item in module.get(sequence, {}).get("Value", ()):
        uid = str(item[_REFERENCED_SOP_INSTANCE_UID]["Value"][0])
        yield uid, int(item.get(reason, {}).get("Value", [default])[0])


def error_of(response: httpx.Response, who: str) -> DeliveryError | None:
    """What the status means for the whole request; None for success."""
    status = response.status_code
    if status < 300:
        return None
    retryable, hint = _REMEDIES.get(status, _LATER if status >= 500 or status == 425 else _NEVER)
    return DeliveryError(
        f"{who}: HTTP status {status} {response.reason_phrase}".rstrip(),
        hint=hint,
        code="stow_failed",
        retryable=retryable,
        retry_after_seconds=retry_after(response),
    )


def retry_after(response: httpx.Response) -> float | None:
    """Retry-After (RFC 9110 10.2.3) in seconds from now; None without one that makes sense."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    moment = email.utils.parsedate_tz(value)
    if moment is None:
        return None
    return max(0.0, email.utils.mktime_tz(moment) - time.time())
