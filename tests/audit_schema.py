"""PS3.15 A.5.1's schema of an audit message, as far as we use it: attributes, and children in their order."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

_CODED = ({"csd-code", "codeSystemName", "originalText"}, set[str](), ())
#: element -> (attributes that must be there, that may be, children in their order as a pattern)
_SCHEMA: dict[str, tuple[set[str], set[str], tuple[str, ...]]] = {
    "AuditMessage": (
        set(),
        set(),
        (
            "EventIdentification",
            "(ActiveParticipant )+",
            "AuditSourceIdentification",
            "(ParticipantObjectIdentification )*",
        ),
    ),
    "EventIdentification": (
        {"EventDateTime", "EventOutcomeIndicator"},
        {"EventActionCode"},
        ("EventID", "(EventTypeCode )*", "(EventOutcomeDescription )?"),
    ),
    "ActiveParticipant": (
        {"UserID", "UserIsRequestor"},
        {"AlternativeUserID", "UserName", "NetworkAccessPointID", "NetworkAccessPointTypeCode"},
        ("(RoleIDCode )*",),
    ),
    "AuditSourceIdentification": ({"AuditSourceID"}, {"AuditEnterpriseSiteID"}, ("(AuditSourceTypeCode )*",)),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID"},
        {"ParticipantObjectTypeCode", "ParticipantObjectTypeCodeRole"},
        (
            "ParticipantObjectIDTypeCode",
            "ParticipantObjectName",
            "(ParticipantObjectDetail )*",
            "(ParticipantObjectDescription )*",
        ),
    ),
    "ParticipantObjectDescription": (set(), set(), ("(SOPClass )*",)),
    "ParticipantObjectDetail": ({"type", "value"}, set(), ()),
    "SOPClass": ({"NumberOfInstances"}, {"UID"}, ()),
    "AuditSourceTypeCode": ({"csd-code"}, set(), ()),
    "EventOutcomeDescription": (set(), set(), ()),
    "ParticipantObjectName": (set(), set(), ()),
    **dict.fromkeys(("EventID", "EventTypeCode", "RoleIDCode", "ParticipantObjectIDTypeCode"), _CODED),
}


def parsed(line: str | bytes) -> ET.Element:
    """One line of the trail; fails the test when it isn't a message of the schema."""
    message = ET.fromstring(line)  # noqa: S314 - our own
    assert message.tag == "AuditMessage"
    for element in message.iter():
        required, optional, children = _SCHEMA[element.tag]
        assert required <= set(element.keys()) <= required | optional, element.tag
        pattern = "".join(child if child.startswith("(") else f"{child} " for child in children)
        assert re.fullmatch(pattern, "".join(f"{child.tag} " for child in element)), element.tag
    event = message[0]
    assert event.get("EventActionCode") in ("C", "R", "U", "D", "E")
    assert event.get("EventOutcomeIndicator") in ("0", "4", "8", "12")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{12}\+00:00", event.get("EventDateTime") or "")
    return message


def event_of(message: ET.Element) -> tuple[str, str, str]:
    """(EventID, EventTypeCode or "", outcome)."""
    kind = message.find("EventIdentification/EventTypeCode")
    return (
        message.find("EventIdentification/EventID").get("csd-code"),  # type: ignore[union-attr, return-value]
        "" if kind is None else kind.get("csd-code", ""),
        message[0].get("EventOutcomeIndicator", ""),
    )
