"""summary.json of a result set, as far as who delivers or supersedes the set reads it. Imports nothing heavy.

results      the objects in the default encoding, in the order in which to send them
encodings    names of all encodings that the set was made for (``pipelines.encoding``)
variants     encoding -> objects that take the place of those of the same role
rejections   encoding -> the note that rejects what this set supersedes, where one was asked for
no_result    code and reason, where the set only says that there is no result
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.encoding import DEFAULT, Encoding


def objects_for(summary: Mapping[str, Any], encoding: Encoding) -> list[Mapping[str, Any]]:
    """The entries of a set's objects as a destination with this encoding gets them, in order."""
    instead = {_role(one): one for one in summary.get("variants", {}).get(encoding.name, [])}
    return [instead.get(_role(one), one) for one in summary["results"]]


def was_made_for(summary: Mapping[str, Any], encoding: Encoding) -> bool:
    return encoding == DEFAULT or encoding.name in summary.get("encodings", [])


def _role(entry: Mapping[str, Any]) -> str:
    return str(entry["path"]).partition(".")[0]
