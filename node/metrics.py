"""The node's Prometheus metrics, with their units and the values that their labels can take.

The receiver's process has its own, in ``node.receive.metrics``; both appear at ``/metrics``.

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

_SECONDS_OF_REQUESTS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
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
        self.spool_age_seconds = Gauge(
            "pacsnode_spool_age_seconds",
            "How long the oldest one waits, of those in the database now, 0 without any. waiting_for: "
            "completeness (since a series' last instance), routing (likewise), run, delivery (since a job's "
            "creation).",
            ["waiting_for"],
            registry=registry,
        )
        self.series = Gauge(
            "pacsnode_series",
            "Series versions in the database now, whichever node's. state: open, complete, routed.",
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
            "Jobs in the database now, whichever node's. state: queued, retry, running, delivering, done, "
            "failed, cancelled.",
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
        self.inference_seconds = Histogram(
            "pacsnode_inference_duration_seconds",
            "One request to Triton that was answered, as its pipeline sees it.",
            ["pipeline", "model"],
            buckets=_SECONDS_OF_REQUESTS,
            registry=registry,
        )
        self.inference_failures = Counter(
            "pacsnode_inference_failures_total",
            "Requests to Triton that failed. code: triton_unavailable, inference_interrupted, "
            "inference_failed.",
            ["pipeline", "model", "code"],
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
        self.deliveries_waiting = Gauge(
            "pacsnode_deliveries_waiting",
            "Result sets in the database now that a destination is still to store, or to commit itself to.",
            ["destination"],
            registry=registry,
        )
        self.delivery_turnaround_seconds = Histogram(
            "pacsnode_delivery_turnaround_seconds",
            "From a series' last instance to its result set being stored by a destination, and committed to "
            "where that is asked for. until: stored, committed.",
            ["destination", "until"],
            buckets=_SECONDS_LONG,
            registry=registry,
        )
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

    def requests_of(self, pipeline: str) -> Callable[[str, float, str], None]:
        """Counts requests to Triton: model, seconds, and the error's code, or "" where it was answered."""

        def count(model: str, seconds: float, code: str) -> None:
            if code:
                self.inference_failures.labels(pipeline=pipeline, model=model, code=code).inc()
            else:
                self.inference_seconds.labels(pipeline=pipeline, model=model).observe(seconds)

        return count

    def watch_disk(self, folder: Path) -> None:
        """Measure free space under ``folder`` at every scrape."""
        self.free_disk_bytes.set_function(lambda: float(shutil.disk_usage(folder).free))

    def expose(self) -> bytes:
        """The current values in Prometheus' text format."""
        return generate_latest(self.registry)
