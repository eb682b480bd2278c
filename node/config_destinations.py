"""The ``destinations`` section: where results go, how often it is tried, and how much at once.

Part of ``node.config``, which names these models, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from node.config_fields import AETitle, ClientTls, Model, PeerPort, Seconds
from pipelines.encoding import EmptyFrames, Encoding, SegmentationType


class DeliveryOptions(Model):
    """What every kind of destination has: when a delivery is tried again, how much it may be given, and what.

    A delivery fails for good by ``max_attempts`` or ``give_up_seconds`` after the first attempt, whichever
    comes first. Postponed because the destination is known to be down (``breaker_failures``), it isn't an
    attempt.
    """

    max_attempts: int = Field(default=2000, ge=1)
    retry_seconds: Seconds = 5.0
    max_retry_seconds: Seconds = 900.0
    give_up_seconds: Seconds = 604800.0
    breaker_failures: int = Field(default=5, ge=1, le=1000)
    concurrency: int = Field(default=2, ge=1, le=64)
    max_instances_per_second: float | None = Field(default=None, gt=0)
    max_bytes_per_second: float | None = Field(default=None, gt=0)
    segmentation: SegmentationType = "binary"
    empty_frames: EmptyFrames = "omit"
    replace: Literal["keep", "reject"] = "keep"

    @property
    def encoding(self) -> Encoding:
        """How the destination wants segmentations."""
        return Encoding(self.segmentation, self.empty_frames)


class CommitmentOptions(Model):
    """Storage Commitment (PS3.4 annex J) by a destination. Of another AE than the destination's, if named."""

    ae_title: AETitle | None = None
    host: str | None = None
    port: PeerPort | None = None
    same_association_seconds: float = Field(default=1.0, ge=0)
    report_seconds: Seconds = 3600.0


class CStoreDestination(DeliveryOptions):
    """A DICOM storage SCP."""

    type: Literal["cstore"]
    ae_title: AETitle
    host: str
    port: PeerPort
    calling_ae_title: AETitle | None = None
    tls: ClientTls | None = None
    timeout_seconds: Seconds = 60.0
    deflate: bool = False
    commitment: CommitmentOptions | None = None


class StowDestination(DeliveryOptions):
    """A DICOMweb server that takes STOW-RS (PS3.18 10.5). ``url``: of its service; /studies is appended."""

    type: Literal["stow"]
    url: str = Field(pattern=r"^https?://[^/\s?#@]+(/[^\s?#@]*)?$")
    tls: ClientTls | None = None
    token_file: Path | None = None
    token_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    max_request_bytes: int = Field(default=100_000_000, ge=1_000_000)
    timeout_seconds: Seconds = 60.0

    @model_validator(mode="after")
    def _secrets_are_safe(self) -> StowDestination:
        if self.token_file is not None and self.token_variable is not None:
            raise ValueError("token_file and token_variable are two ways to the same token: name one")
        if self.tls is not None and not self.url.startswith("https:"):
            raise ValueError("tls is for https: begin url with https://, or leave tls out")
        return self


class FolderDestination(DeliveryOptions):
    """A folder: one subfolder a series, files written atomically."""

    type: Literal["folder"]
    path: Path


DestinationConfig = Annotated[
    CStoreDestination | StowDestination | FolderDestination, Field(discriminator="type")
]
