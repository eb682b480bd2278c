"""Every Prometheus metric of the node, with its unit and the values its labels can take.

In: what the services count and measure. Out: ``Metrics.expose()``, the text that ``/metrics`` answers.
Names start with ``pacsnode_``, units are base units, counters end in ``_total``. Labels are bounded: names
from the configuration, codes from our own tables; never a UID, an AE title of a peer or free text.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, generate_latest
from prometheus_client.process_collector import ProcessCollector

_SECONDS_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_RATIOS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
_DIFFERENCES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_SECONDS_LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


@dataclass(frozen=True)
class TlsMetrics:
    """Of the certificates of one listener or destination."""

    #: (file, when its first certificate ends) -> shown from now on
    watch: Callable[[str, Callable[[], float]], None]
    reload_failed: Callable[[], None]


class AuditMetrics:
    """Of one process's audit trail."""

    def __init__(self, prefix: str, registry: CollectorRegistry) -> None:
        self.messages = Counter(
            f"{prefix}_messages_total",
            "Messages of the audit trail. outcome: written, suppressed (of a flood; counted in the trail), "
            "lost, sent (to the collector; some more than once).",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("written", "suppressed", "lost", "sent"):  # there from the start: else the first
            self.messages.labels(outcome=outcome)  # count of one is no increase, and no alert
        self.unsent_bytes = Gauge(
            f"{prefix}_unsent_bytes", "Of messages that the collector doesn't have yet.", registry=registry
        )
        self._not_after = Gauge(
            f"{prefix}_certificate_not_after_timestamp_seconds",
            "When the first certificate of a file of audit.syslog.tls ends, since the epoch. "
            "file: certificate, ca.",
            ["file"],
            registry=registry,
        )
        self._reload_failures = Counter(
            f"{prefix}_tls_reload_failures_total",
            "Changed files of audit.syslog.tls that couldn't be used; the ones before stay in use.",
            registry=registry,
        )

    def tls(self) -> TlsMetrics:
        """For the certificates towards the collector."""
        return TlsMetrics(
            lambda file, read: self._not_after.labels(file=file).set_function(read), self._reload_failures.inc
        )


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


class ShadowMetrics:
    """How far candidates agree with what is live. candidate: its name in the configuration."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.runs = Counter(
            "pacsnode_shadow_runs_total",
            "Runs of candidates. outcome: done, failed, skipped (input or live result gone), or interrupted: "
            "a job came, and it is done again.",
            ["candidate", "outcome"],
            registry=registry,
        )
        self._dice = Histogram(
            "pacsnode_shadow_dice_ratio",
            "Dice coefficient of a segment with the live result's. segment: its label, without a number.",
            ["candidate", "segment"],
            buckets=_RATIOS,
            registry=registry,
        )
        self._case_types = Counter(
            "pacsnode_shadow_case_types_total",
            "Case types compared with the live result's. outcome: equal, different.",
            ["candidate", "outcome"],
            registry=registry,
        )
        self._noisy_or = Histogram(
            "pacsnode_shadow_noisy_or_difference_ratio",
            "Absolute difference of a Noisy-OR probability from the live result's.",
            ["candidate", "type"],
            buckets=_DIFFERENCES,
            registry=registry,
        )

    def observe(self, candidate: str, agreement: Mapping[str, Any]) -> None:
        """agreement: as ``pipelines.agreement`` says it."""
        for segment, dice in agreement["dice"].items():
            self._dice.labels(candidate=candidate, segment=segment).observe(dice)
        outcome = "equal" if agreement["case_type"]["equal"] else "different"
        self._case_types.labels(candidate=candidate, outcome=outcome).inc()
        for name, probability in agreement["noisy_or"].items():
            difference = abs(probability["difference"])
            self._noisy_or.labels(candidate=candidate, type=name).observe(difference)


class Metrics:
    """What the rest of the node counts, on a registry of its own; one a process (or a test)."""

    def __init__(self, version: str) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        ProcessCollector(namespace="pacsnode", registry=registry)
        Info("pacsnode_build", "The running software.", registry=registry).info({"version": version})

        self.free_disk_bytes = Gauge(
            "pacsnode_free_disk_bytes", "Free space where data_dir lies.", registry=registry
        )

        # series and routing
        self.series = Gauge(
            "pacsnode_series",
            "Series versions now. state: open, complete, routed.",
            ["state"],
            registry=registry,
        )
        self.routing = Counter(
            "pacsnode_routing_total",
            "Series versions routed. outcome: matched, unmatched; reason: none, no_routes, "
            "unreadable, or the fact that kept the nearest route from matching.",
            ["outcome", "reason"],
            registry=registry,
        )

        # run
        self.jobs = Gauge(
            "pacsnode_jobs",
            "Jobs now. state: queued, retry, running, delivering, done, failed, cancelled.",
            ["state"],
            registry=registry,
        )
        self.jobs_finished = Counter(
            "pacsnode_jobs_finished_total",
            "Jobs ended. state: done, failed, cancelled; code: none, or the error's code.",
            ["pipeline", "state", "code"],
            registry=registry,
        )
        self.job_retries = Counter(
            "pacsnode_job_retries_total",
            "Attempts to run a job that are to be made again, or that wait. code: why.",
            ["pipeline", "code"],
            registry=registry,
        )
        self.queue_wait_seconds = Histogram(
            "pacsnode_job_queue_wait_seconds",
            "From a job's creation to its start.",
            ["pipeline"],
            buckets=_SECONDS_LONG,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "pacsnode_stage_duration_seconds",
            "One stage of a pipeline.",
            ["pipeline", "stage"],
            buckets=_SECONDS_LONG,
            registry=registry,
        )
        self.turnaround_seconds = Histogram(
            "pacsnode_turnaround_seconds",
            "From a series' last instance to its result set being delivered everywhere.",
            ["pipeline"],
            buckets=_SECONDS_LONG,
            registry=registry,
        )
        self.triton_ready = Gauge(
            "pacsnode_triton_ready", "1 when Triton answers ready, else 0.", registry=registry
        )

        # deliver
        self.deliveries = Counter(
            "pacsnode_deliveries_total",
            "Attempts to deliver a result set. outcome: delivered, retried, failed, or postponed: none, as "
            "the destination is known to be down.",
            ["destination", "outcome"],
            registry=registry,
        )
        self.delivery_failures = Counter(
            "pacsnode_delivery_failures_total",
            "Attempts to deliver a result set that failed or were put off. code: why.",
            ["destination", "code"],
            registry=registry,
        )
        self.delivery_seconds = Histogram(
            "pacsnode_delivery_duration_seconds",
            "One attempt to deliver one result set.",
            ["destination"],
            buckets=_SECONDS_LONG,
            registry=registry,
        )

        self.delivered_instances = Counter(
            "pacsnode_delivered_instances_total",
            "Objects that a destination stored. outcome: stored, warning (not quite as it was sent).",
            ["destination", "outcome"],
            registry=registry,
        )
        self.commitment_requests = Counter(
            "pacsnode_commitment_requests_sent_total",
            "Storage Commitment requests to destinations. outcome: sent, withdrawn (it couldn't be sent), "
            "expired (no report came).",
            ["destination", "outcome"],
            registry=registry,
        )
        self.committed_instances = Counter(
            "pacsnode_committed_instances_total",
            "Objects of which a destination reported. outcome: committed, failed.",
            ["destination", "outcome"],
            registry=registry,
        )
        self.circuit = Enum(
            "pacsnode_destination_circuit",
            "A destination's circuit breaker: 1 for the state that it is in. open: it is left alone.",
            ["destination"],
            states=["closed", "half_open", "open"],
            registry=registry,
        )
        self.circuit_opened = Counter(
            "pacsnode_destination_circuit_opened_total",
            "How often a destination's circuit breaker opened.",
            ["destination"],
            registry=registry,
        )

        self.configuration = Gauge(
            "pacsnode_configuration_loaded_timestamp_seconds",
            "When the configuration in use was read, since the epoch; version: a hash of its content.",
            ["version"],
            registry=registry,
        )
        self.configuration_reloads = Counter(
            "pacsnode_configuration_reloads_total",
            "Configurations that were read while running. outcome: applied, refused (nothing changed).",
            ["outcome"],
            registry=registry,
        )

        self.purged_series = Counter(
            "pacsnode_purged_series_total", "Series whose retention has passed.", registry=registry
        )
        self.purged_bytes = Counter(
            "pacsnode_purged_bytes_total", "Input that was deleted with them.", registry=registry
        )

        self.certificate_not_after = Gauge(
            "pacsnode_destination_certificate_not_after_timestamp_seconds",
            "When a destination's first certificate of a file ends, since the epoch. file: certificate, ca.",
            ["destination", "file"],
            registry=registry,
        )
        self.tls_reload_failures = Counter(
            "pacsnode_destination_tls_reload_failures_total",
            "Changed TLS files of a destination that couldn't be used; the ones before stay in use.",
            ["destination"],
            registry=registry,
        )
        self.audit = AuditMetrics("pacsnode_audit", registry)
        self.shadow = ShadowMetrics(registry)

    def tls(self, destination: str) -> TlsMetrics:
        """For one destination's certificates."""
        not_after = self.certificate_not_after
        return TlsMetrics(
            lambda file, read: not_after.labels(destination=destination, file=file).set_function(read),
            self.tls_reload_failures.labels(destination=destination).inc,
        )

    def watch_disk(self, folder: Path) -> None:
        """Measure free space under ``folder`` at every scrape."""
        self.free_disk_bytes.set_function(lambda: float(shutil.disk_usage(folder).free))

    def expose(self) -> bytes:
        """The current values in Prometheus' text format."""
        return generate_latest(self.registry)
