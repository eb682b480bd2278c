"""Names, units and labels of the metrics."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from node.metrics import Metrics
from node.receive.metrics import ReceiveMetrics


def test_names_and_units() -> None:
    families = list(
        text_string_to_metric_families((Metrics("1.0").expose() + ReceiveMetrics().expose()).decode())
    )
    assert len({family.name for family in families}) == len(families) > 20
    for family in families:
        assert family.name.startswith("pacsnode_"), family.name
        assert family.documentation, family.name
        assert not re.search(r"(_ms|_millis|_minutes|_mb|_kb)\b", family.name)
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_ratio"))


def test_labels_are_bounded_ones() -> None:
    collectors = [*vars(Metrics("1.0")).values(), *vars(ReceiveMetrics()).values()]
    labels = {label for collector in collectors for label in getattr(collector, "_labelnames", ())}
    about_it = {"reason", "how", "outcome", "code", "rule", "state", "file", "by"}
    one_at_a_time = {"version"}  # of the configuration in use
    ours = {"pipeline", "stage", "model", "destination", "peer", "until", "waiting_for"}
    assert labels <= about_it | one_at_a_time | ours


def test_two_can_live_side_by_side() -> None:
    first, second = ReceiveMetrics(), ReceiveMetrics()
    first.associations_accepted.inc()
    assert second.registry.get_sample_value("pacsnode_associations_accepted_total") == 0.0


def test_free_disk(tmp_path: object) -> None:
    metrics = Metrics("1")
    metrics.watch_disk(tmp_path)  # type: ignore[arg-type]
    free = metrics.registry.get_sample_value("pacsnode_free_disk_bytes")
    assert free is not None and free > 0


def test_lost_messages_are_counted_from_zero() -> None:
    """A counter that appears with its first count doesn't increase, and no alert is raised."""
    for registry, name in ((Metrics("1").registry, "audit"), (ReceiveMetrics().registry, "receive_audit")):
        assert registry.get_sample_value(f"pacsnode_{name}_messages_total", {"outcome": "lost"}) == 0.0
