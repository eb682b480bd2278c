"""The Prometheus metrics of the receiver's process: see ``node.metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from node.metrics import AuditMetrics, TlsMetrics

_SECONDS_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class ReceiveMetrics:
    """What the receiver's process counts, on a registry of its own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        ProcessCollector(namespace="pacsnode_receive", registry=registry)
        self.associations_open = Gauge(
            "pacsnode_associations_open", "Associations accepted and not yet ended.", registry=registry
        )
        self.associations_accepted = Counter(
            "pacsnode_associations_accepted_total", "Associations accepted.", registry=registry
        )
        self.associations_rejected = Counter(
            "pacsnode_associations_rejected_total",
            "Associations rejected. reason: calling_ae_title, called_ae_title, host, too_many_associations, "
            "too_many_of_peer, no_space.",
            ["reason"],
            registry=registry,
        )
        self.connections_dropped = Counter(
            "pacsnode_connections_dropped_total",
            "Connections that ended before an association was asked for. reason: tls (handshake failed), "
            "too_many (others were waiting as well).",
            ["reason"],
            registry=registry,
        )
        self.certificate_not_after = Gauge(
            "pacsnode_receive_certificate_not_after_timestamp_seconds",
            "When the listener's first certificate of a file ends, since the epoch. file: certificate, ca.",
            ["file"],
            registry=registry,
        )
        self.tls_reload_failures = Counter(
            "pacsnode_receive_tls_reload_failures_total",
            "Changed TLS files of the listener that couldn't be used; the ones before stay in use.",
            registry=registry,
        )
        self.audit = AuditMetrics("pacsnode_receive_audit", registry)
        self.associations_ended = Counter(
            "pacsnode_associations_ended_total",
            "Accepted associations that ended. how: released, aborted (also: connection lost, timed out).",
            ["how"],
            registry=registry,
        )
        self.instances = Counter(
            "pacsnode_instances_total",
            "C-STORE requests answered. outcome: stored, duplicate, quarantined, refused; "
            "code: none, or why it was quarantined or refused. Also what the disk had lost at start-up: "
            "quarantined, file_missing.",
            ["outcome", "code"],
            registry=registry,
        )
        self.received_bytes = Counter(
            "pacsnode_received_bytes_total", "Data set bytes received by C-STORE.", registry=registry
        )
        self.c_store_seconds = Histogram(
            "pacsnode_c_store_duration_seconds",
            "From a C-STORE request to its instance being durable.",
            buckets=_SECONDS_SHORT,
            registry=registry,
        )
        self.commitments_open = Gauge(
            "pacsnode_commitments_open", "Storage commitment requests not yet reported.", registry=registry
        )
        self.commitment_requests = Counter(
            "pacsnode_commitment_requests_total",
            "Storage commitment requests (N-ACTION) answered. outcome: accepted, or the status: "
            "processing_failure, no_such_instance, invalid_argument, no_such_action, mistyped_argument, "
            "resource_limitation.",
            ["outcome"],
            registry=registry,
        )
        self.commitment_instances = Counter(
            "pacsnode_commitment_instances_total",
            "Instances of reported requests. outcome: committed, or the failure reason: processing_failure, "
            "no_such_instance, class_instance_conflict, class_not_supported, duplicate_transaction.",
            ["outcome"],
            registry=registry,
        )
        self.commitment_results = Counter(
            "pacsnode_commitment_results_total",
            "Reports on our own Storage Commitment requests, over associations to our listener. outcome: "
            "recorded, or why not: invalid_argument, no_such_event, processing_failure.",
            ["outcome"],
            registry=registry,
        )
        self.commitment_reports = Counter(
            "pacsnode_commitment_reports_total",
            "Attempts to report (N-EVENT-REPORT). outcome: same_association, new_association (both arrived), "
            "failed (to be tried again), given_up.",
            ["outcome"],
            registry=registry,
        )
        self.series_opened = Counter(
            "pacsnode_series_opened_total", "Series versions opened by a first instance.", registry=registry
        )
        self.series_late = Counter(
            "pacsnode_series_late_total",
            "Of these, the ones opened by an instance that came after its series was judged complete.",
            registry=registry,
        )
        self.series_completed = Counter(
            "pacsnode_series_completed_total",
            "Series versions judged complete. rule: multi_frame, expected_count, association_release, "
            "quiet_time, missing_limit, hard_limit.",
            ["rule"],
            registry=registry,
        )
        self.series_incomplete = Counter(
            "pacsnode_series_incomplete_total",
            "Series versions completed although something is missing. by: who says so: c_find, series_count, "
            "concatenation, images_in_acquisition, positions.",
            ["by"],
            registry=registry,
        )
        self.queries = Counter(
            "pacsnode_queries_total",
            "Questions for the number of instances. peer: its name in the configuration; outcome: answered, "
            "unreachable, rejected, refused, timeout, broken.",
            ["peer", "outcome"],
            registry=registry,
        )
        self.fetches = Counter(
            "pacsnode_fetches_total",
            "Attempts to fetch what is missing. outcome: complete, partial, failed.",
            ["peer", "outcome"],
            registry=registry,
        )
        self.fetched_instances = Counter(
            "pacsnode_fetched_instances_total", "Instances fetched.", ["peer"], registry=registry
        )

    def tls(self) -> TlsMetrics:
        """For the listener's certificates."""
        return TlsMetrics(
            lambda file, read: self.certificate_not_after.labels(file=file).set_function(read),
            self.tls_reload_failures.inc,
        )

    def expose(self) -> bytes:
        """The current values in Prometheus' text format."""
        return generate_latest(self.registry)
