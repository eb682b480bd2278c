"""The ops page: what came in, what became of it, and why.

In: rows of the series, jobs and instances tables. Out: one HTML document without scripts or external
resources. Every value is escaped; it shows UIDs, codes and coded header values, no patient data.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from node import __version__
from node.deliver.gate import Condition

_STYLE = """
:root { color-scheme: light dark; --bg: #f6f7f9; --card: #fff; --ink: #1c2330; --soft: #667085;
  --line: #e3e7ee; --good: #14804a; --busy: #1d5fc4; --warn: #a15c00; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --bg: #11151c; --card: #1a202b; --ink: #e6eaf2;
  --soft: #94a0b5; --line: #2b3443; --good: #4cc38a; --busy: #70a8ff; --warn: #f0b14a; --bad: #ff7a70; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
header { display: flex; align-items: baseline; gap: 14px; flex-wrap: wrap; margin-bottom: 18px; }
h1 { font-size: 21px; margin: 0; } h2 { font-size: 16px; margin: 28px 0 8px; }
.soft { color: var(--soft); } .mono { font: 12.5px ui-monospace, monospace; word-break: break-all; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; font-size: 12.5px; color: var(--soft); }
th, td { padding: 9px 12px; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
.pill { display: inline-block; padding: 1px 9px; border-radius: 99px; border: 1px solid currentColor;
  font-size: 12.5px; white-space: nowrap; }
.good { color: var(--good); } .busy { color: var(--busy); } .warn { color: var(--warn); }
.bad { color: var(--bad); } .empty { padding: 16px 12px; color: var(--soft); }
.form { display: grid; gap: 14px; max-width: 340px; padding: 18px; } .form label { display: grid; gap: 4px; }
input, button { font: inherit; padding: 8px 10px; border: 1px solid var(--line); border-radius: 6px;
  background: var(--bg); color: var(--ink); } button { cursor: pointer; }
.inline { display: inline-block; margin: 0 6px 10px 0; }
"""

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
#: what the pages may load and do: their own style, forms to ourselves, pictures of ours; no script at all
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)

_TONES = {
    "routed": "good",
    "closed": "good",
    "half_open": "warn",
    "done": "good",
    "delivered": "good",
    "open": "busy",
    "complete": "busy",
    "queued": "busy",
    "running": "busy",
    "delivering": "busy",
    "pending": "busy",
    "unmatched": "warn",
    "quarantined": "warn",
    "cancelled": "warn",
    "failed": "bad",
}


def render_page(
    *,
    failing: Mapping[str, str],
    series: Sequence[Mapping[str, Any]],
    jobs: Sequence[Mapping[str, Any]],
    quarantined: Sequence[Mapping[str, Any]],
    now: float,
    destinations: Sequence[Condition] = (),
    waiting: Mapping[str, int] | None = None,
    user: str | None = None,
) -> str:
    """The whole document. ``failing``: readiness checks that fail, with the reason; rows newest first.

    waiting: deliveries that aren't settled, by destination.  user: who logged in, if anybody had to.
    """
    health = (
        "".join(
            f"<span class='pill bad'>{escape(name)}</span> {escape(reason)} "
            for name, reason in failing.items()
        )
        or "<span class='pill good'>ready</span>"
    )
    body = "".join(
        (
            _table(
                "Series",
                ("Series", "State", "Instances", "From", "Last instance", "Why"),
                [_series_row(row, now) for row in series],
                "Nothing received yet.",
            ),
            _table(
                "Jobs",
                ("Job", "State", "Pipeline", "Attempt", "Created", "Deliveries and reasons"),
                [_job_row(row, now) for row in jobs],
                "No jobs yet.",
            ),
            _table(
                "Destinations",
                ("Destination", "Circuit", "Since", "Waiting", "Last error"),
                [_destination_row(each, (waiting or {}).get(each.name, 0), now) for each in destinations],
                "No destinations here.",
            ),
            _table(
                "Quarantine",
                ("File", "Code", "Bytes", "From", "Received", "Reason"),
                [_quarantine_row(row, now) for row in quarantined],
                "Nothing in quarantine.",
            ),
        )
    )
    leave = (
        f" · {escape(user)} <form class='inline' method='post' action='/logout'>"
        "<button>Log out</button></form>"
        if user is not None
        else ""
    )
    return document(
        "PACS inference node",
        f"<header><h1>PACS inference node</h1><span>{health}</span>"
        f"<span class='soft'>version {escape(__version__)} · <a href='/metrics'>metrics</a> · "
        f"<a href='/api/series'>series</a> · <a href='/api/jobs'>jobs</a>{leave}</span></header>{body}",
        refresh_seconds=10,
    )


def document(title: str, body: str, *, refresh_seconds: int | None = None) -> str:
    """A page around its body, which is HTML."""
    refresh = f"<meta http-equiv='refresh' content='{refresh_seconds}'>" if refresh_seconds else ""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"{refresh}<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>"
    )


def _table(title: str, columns: Sequence[str], rows: Sequence[str], nothing: str) -> str:
    if not rows:
        return f"<h2>{title}</h2><div class='card'><div class='empty'>{nothing}</div></div>"
    head = "".join(f"<th>{column}</th>" for column in columns)
    return (
        f"<h2>{title}</h2><div class='card'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _series_row(row: Mapping[str, Any], now: float) -> str:
    decision = row["decision"] or {}
    state = "unmatched" if row["state"] == "routed" and not decision.get("matched") else row["state"]
    return _row(
        _link(row["study_instance_uid"], _uid(row["series_instance_uid"], f"version {row['version']}")),
        _pill(state),
        escape(str(row["instance_count"])),
        escape(row["calling_ae_title"]),
        _age(row["last_instance_at"], now),
        _series_reason(row, decision),
    )


def _series_reason(row: Mapping[str, Any], decision: Mapping[str, Any]) -> str:
    evidence = row["evidence"] or {}
    lines = []
    if row.get("purged_at"):
        lines.append("<span class='soft'>deleted: its retention has passed</span>")
    if "rule" in evidence:
        lines.append(f"<span class='soft'>complete by {escape(evidence['rule'].replace('_', ' '))}</span>")
        lines += [f"<span class='warn'>{escape(text)}</span>" for text in _missing(evidence)]
    if decision and not decision["routes"]:
        lines.append("no routes are configured")
    for verdict in decision.get("routes", ()):
        mark = "matches" if verdict["matches"] else "no match"
        lines.append(f"<b>{escape(verdict['route'])}</b> {mark}: {escape(verdict['why'])}")
    return "<br>".join(lines) or "<span class='soft'>waiting for more instances</span>"


def _missing(evidence: Mapping[str, Any]) -> list[str]:
    """What is known to be missing of a series that was completed all the same."""
    lines = []
    if evidence.get("missing_instances"):
        by = evidence["expected_by"].replace("_", " ")
        lines.append(f"{evidence['instances']} of {evidence['expected']} instances (by {by})")
    if positions := evidence.get("missing_positions"):
        lines.append(f"{positions['count']} slice positions missing")
    if error := (evidence.get("query") or {}).get("error"):
        lines.append(error)
    return lines


def _job_row(row: Mapping[str, Any], now: float) -> str:
    lines = [f"{escape(row['reason_code'] or '')} {escape(row['reason'] or '')}".strip()]
    for delivery in row["deliveries"]:
        error = f" {escape(delivery['last_error'])}" if delivery["last_error"] else ""
        warnings = "".join(
            f"<br><span class='warn'>{escape(text)}</span>" for text in delivery["warnings"] or ()
        )
        lines.append(
            f"{escape(delivery['destination'])} {_pill(delivery['state'])} "
            f"<span class='soft'>{delivery['attempts']} attempts</span>{error}{warnings}"
        )
    return _row(
        _uid(row["job_id"], f"series {row['series_instance_uid']} version {row['series_version']}"),
        _pill(row["state"]),
        escape(row["pipeline"]),
        str(row["generation"]),
        _age(row["created_at"], now),
        "<br>".join(line for line in lines if line),
    )


def _destination_row(condition: Condition, waiting: int, now: float) -> str:
    return _row(
        escape(condition.name),
        _pill(condition.state),
        _age(condition.since, now),
        str(waiting),
        escape(condition.last_error),
    )


def _quarantine_row(row: Mapping[str, Any], now: float) -> str:
    return _row(
        f"<span class='mono'>{escape(row['path'])}</span>",
        f"<span class='pill warn'>{escape(row['reason_code'] or '')}</span>",
        str(row["bytes"]),
        escape(row["calling_ae_title"]),
        _age(row["received_at"], now),
        escape(row["reason"] or ""),
    )


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _uid(uid: str, note: str) -> str:
    return f"<span class='mono'>{escape(uid)}</span><br><span class='soft mono'>{escape(note)}</span>"


def _link(study_instance_uid: str, shown: str) -> str:
    return f"<a href='/studies/{quote(study_instance_uid)}'>{shown}</a>"


def _pill(state: str) -> str:
    return f"<span class='pill {_TONES.get(state, 'busy')}'>{escape(state)}</span>"


def _age(timestamp: float, now: float) -> str:
    seconds = max(0, int(now - timestamp))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
