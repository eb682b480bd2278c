"""Which servers are offered shared memory, and whose regions are given back. With one: tests/integration."""

from __future__ import annotations

import os

import pytest

from pipelines import shared_memory

NAMESPACE = shared_memory._namespace()


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("127.0.0.1:8001", True),
        ("localhost:8001", True),
        ("[::1]:8001", True),
        ("10.0.0.5:8001", False),
        ("triton.example:8001", False),
    ],
)
def test_only_a_server_on_this_host_is_offered_memory(url: str, local: bool) -> None:
    assert shared_memory._is_loopback(url) is local


@pytest.mark.parametrize(
    ("name", "orphaned"),
    [
        (f"pacsnode-tensors-{NAMESPACE}-999999999-0", True),
        (f"pacsnode-tensors-{NAMESPACE}-{os.getpid()}-0", False),
        (f"pacsnode-tensors-{NAMESPACE}-{os.getpid()}-1", True),  # ours, and refused when it was given back
        (f"pacsnode-tensors-{NAMESPACE + 1}-999999999-0", False),  # another container's process
        (f"pacsnode-tensors-{NAMESPACE}", False),
        ("somebody-elses", False),
    ],
    ids=["of nobody", "ours", "ours, left", "elsewhere", "odd", "other"],
)
def test_only_regions_that_nobody_uses_are_given_back(
    name: str, orphaned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "_in_use", {f"pacsnode-tensors-{NAMESPACE}-{os.getpid()}-0"})
    assert shared_memory._orphaned(name) is orphaned
