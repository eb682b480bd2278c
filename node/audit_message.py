"""The messages of the audit trail, in the XML schema of PS3.15 A.5.1.

In: what happened.  Out: one line of XML. AE titles, addresses and UIDs only: no patient data. The Patient
object, which A.5.3.3 and A.5.3.7 demand, is left out therefore; the Study Instance UID leads to it.
"""

from __future__ import annotations

import base64
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Literal

#: EventOutcomeIndicator
SUCCESS, MINOR_FAILURE, SERIOUS_FAILURE = 0, 4, 8

_Code = tuple[str, str]  # of the scheme DCM, with its meaning
_APPLICATION_ACTIVITY: _Code = ("110100", "Application Activity")
_BEGIN_TRANSFERRING: _Code = ("110102", "Begin Transferring DICOM Instances")
_ACCESSED: _Code = ("110103", "DICOM Instances Accessed")
_TRANSFERRED: _Code = ("110104", "DICOM Instances Transferred")
_SECURITY_ALERT: _Code = ("110113", "Security Alert")
_USER_AUTHENTICATION: _Code = ("110114", "User Authentication")
_APPLICATION_START: _Code = ("110120", "Application Start")
_APPLICATION_STOP: _Code = ("110121", "Application Stop")
_LOGIN: _Code = ("110122", "Login")
_LOGOUT: _Code = ("110123", "Logout")
_NODE_AUTHENTICATION: _Code = ("110126", "Node Authentication")
_APPLICATION: _Code = ("110150", "Application")
_DESTINATION: _Code = ("110152", "Destination Role ID")
_SOURCE: _Code = ("110153", "Source Role ID")
_STUDY_INSTANCE_UID: _Code = ("110180", "Study Instance UID")
_NODE_ID: _Code = ("110182", "Node ID")

_MACHINE_NAME, _IP_ADDRESS = "1", "2"  # NetworkAccessPointTypeCode
_SYSTEM_OBJECT = "2"  # ParticipantObjectTypeCode
_REPORT, _SECURITY_RESOURCE = "3", "13"  # ParticipantObjectTypeCodeRole
_APPLICATION_SERVER = "4"  # AuditSourceTypeCode
_LONGEST_TEXT = 256


@dataclass(frozen=True)
class Source:
    """Who reports: process is a word for what this process does."""

    ae_title: str
    process: str
    enterprise_site_id: str | None = None


@dataclass(frozen=True)
class Peer:
    """The other side of a connection. ae_title: as it calls itself, "" before it did."""

    ae_title: str
    address: str


@dataclass(frozen=True)
class Transfer:
    """Instances of one study over one association.

    counts: SOP class -> how many.  failure: "", or why there weren't more.
    known: the receiver held them all already.
    """

    peer: Peer
    direction: Literal["received", "sent"]
    study_instance_uid: str
    counts: Mapping[str, int]
    failure: str = ""
    known: bool = False


def application_activity(source: Source, *, started: bool) -> bytes:
    """A.5.3.1."""
    kind = _APPLICATION_START if started else _APPLICATION_STOP
    message = _message(_APPLICATION_ACTIVITY, "E", SUCCESS, kind)
    _ourselves(message, source, _APPLICATION, is_requestor=False)
    _audit_source(message, source)
    return _line(message)


def node_authentication(source: Source, peer: Peer, description: str, outcome: int) -> bytes:
    """A.5.3.11: a node that may not connect, or didn't prove to be the one it says."""
    message = _message(_SECURITY_ALERT, "E", outcome, _NODE_AUTHENTICATION)
    _ourselves(message, source, _APPLICATION, is_requestor=True)
    _participant(message, peer, is_requestor=False)
    _audit_source(message, source)
    node = _object(message, peer.address, _NODE_ID, _SECURITY_RESOURCE)
    value = base64.b64encode(_text(description).encode()).decode()
    ET.SubElement(node, "ParticipantObjectDetail", type="Alert Description", value=value)
    return _line(message, description)


def user_authentication(
    source: Source, user: str, address: str, what: Literal["login", "logout"], *, right: bool
) -> bytes:
    """A.5.3.12: a person logged in or out. user: the name as it was given, which may be nobody's."""
    message = _message(
        _USER_AUTHENTICATION, "E", SUCCESS if right else MINOR_FAILURE, _LOGIN if what == "login" else _LOGOUT
    )
    _participant(message, Peer("", address), is_requestor=True, user=user or "unnamed")
    _ourselves(message, source, _APPLICATION, is_requestor=False)
    _audit_source(message, source)
    return _line(message)


def instances_accessed(source: Source, user: str, address: str, study_instance_uid: str) -> bytes:
    """A.5.3.2: a person was shown what instances say of their patient."""
    message = _message(_ACCESSED, "R", SUCCESS)
    _participant(message, Peer("", address), is_requestor=True, user=user)
    _ourselves(message, source, _APPLICATION, is_requestor=False)
    _audit_source(message, source)
    _object(message, study_instance_uid, _STUDY_INSTANCE_UID, _REPORT)
    return _line(message)


def begin_transferring(source: Source, transfer: Transfer) -> bytes:
    """A.5.3.3: instances are about to be sent."""
    return _transfer(source, transfer, _BEGIN_TRANSFERRING, "E")


def instances_transferred(source: Source, transfer: Transfer) -> bytes:
    """A.5.3.7: instances were received or sent.

    Action C where we didn't hold them; R where we did, or, as the receiver may have, when we sent them.
    """
    return _transfer(source, transfer, _TRANSFERRED, "R" if transfer.known or _is_sent(transfer) else "C")


def _transfer(source: Source, transfer: Transfer, event: _Code, action: str) -> bytes:
    message = _message(event, action, MINOR_FAILURE if transfer.failure else SUCCESS)
    if _is_sent(transfer):
        _ourselves(message, source, _SOURCE, is_requestor=True)
        _participant(message, transfer.peer, _DESTINATION, is_requestor=False)
    else:
        _participant(message, transfer.peer, _SOURCE, is_requestor=True)
        _ourselves(message, source, _DESTINATION, is_requestor=False)
    _audit_source(message, source)
    study = _object(message, transfer.study_instance_uid, _STUDY_INSTANCE_UID, _REPORT)
    content = ET.SubElement(study, "ParticipantObjectDescription")
    for uid, count in sorted(transfer.counts.items()):
        ET.SubElement(content, "SOPClass", UID=_text(uid), NumberOfInstances=str(count))
    return _line(message, transfer.failure)


def _is_sent(transfer: Transfer) -> bool:
    return transfer.direction == "sent"


def _message(event: _Code, action: str, outcome: int, kind: _Code | None = None) -> ET.Element:
    message = ET.Element("AuditMessage")
    identification = ET.SubElement(
        message,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=datetime.now(UTC).isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=str(outcome),
    )
    _coded(identification, "EventID", event)
    if kind is not None:
        _coded(identification, "EventTypeCode", kind)
    return message


def _ourselves(message: ET.Element, source: Source, role: _Code, *, is_requestor: bool) -> None:
    participant = ET.SubElement(
        message,
        "ActiveParticipant",
        UserID=str(os.getpid()),
        AlternativeUserID=f"AETITLES={source.ae_title}",
        UserName=source.process,
        UserIsRequestor=str(is_requestor).lower(),
    )
    _coded(participant, "RoleIDCode", role)


def _participant(
    message: ET.Element,
    peer: Peer,
    role: _Code | None = None,
    *,
    is_requestor: bool,
    user: str | None = None,
) -> None:
    attributes = {"UserID": _text(user or peer.ae_title or peer.address)}
    if peer.ae_title:
        attributes["AlternativeUserID"] = f"AETITLES={_text(peer.ae_title)}"
    participant = ET.SubElement(
        message,
        "ActiveParticipant",
        attributes,
        UserIsRequestor=str(is_requestor).lower(),
        NetworkAccessPointID=_text(peer.address),
        NetworkAccessPointTypeCode=_IP_ADDRESS if _is_ip_address(peer.address) else _MACHINE_NAME,
    )
    if role is not None:
        _coded(participant, "RoleIDCode", role)


def _audit_source(message: ET.Element, source: Source) -> None:
    attributes = {"AuditSourceID": source.ae_title}
    if source.enterprise_site_id is not None:
        attributes["AuditEnterpriseSiteID"] = _text(source.enterprise_site_id)
    element = ET.SubElement(message, "AuditSourceIdentification", attributes)
    ET.SubElement(element, "AuditSourceTypeCode", {"csd-code": _APPLICATION_SERVER})


def _object(message: ET.Element, identifier: str, kind: _Code, role: str) -> ET.Element:
    element = ET.SubElement(
        message,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_text(identifier),
        ParticipantObjectTypeCode=_SYSTEM_OBJECT,
        ParticipantObjectTypeCodeRole=role,
    )
    _coded(element, "ParticipantObjectIDTypeCode", kind)
    # the schema wants a name or a query, and nothing but the identifier is to be said
    ET.SubElement(element, "ParticipantObjectName").text = _text(identifier)
    return element


def _coded(parent: ET.Element, name: str, code: _Code) -> None:
    value, meaning = code
    ET.SubElement(parent, name, {"csd-code": value, "codeSystemName": "DCM", "originalText": meaning})


def _line(message: ET.Element, description: str = "") -> bytes:
    if description:
        ET.SubElement(message[0], "EventOutcomeDescription").text = _text(description)
    return f"{ET.tostring(message, encoding='unicode')}\n".encode()


def _text(value: str) -> str:
    """What a peer says may hold anything, and XML can't."""
    return "".join(c if c.isprintable() else "?" for c in value[:_LONGEST_TEXT])


def _is_ip_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
