"""What the configuration's models share: their base, kinds of values, and TLS.

In: values from YAML.  Out: the same, checked.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _ae_title(value: str) -> str:
    """PS3.5 6.2: at most 16 characters of the default repertoire, no backslash, not only spaces."""
    title = value.strip()
    if not 1 <= len(title) <= 16 or not all(" " <= c <= "~" and c != "\\" for c in title):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return title


def _network(value: str) -> str:
    """An IP address, or a network in CIDR notation without host bits."""
    return str(ip_network(value.strip()))


AETitle = Annotated[str, AfterValidator(_ae_title)]
Network = Annotated[str, AfterValidator(_network)]
Port = Annotated[int, Field(ge=0, le=65535)]
PeerPort = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
TritonUrl = Annotated[str, Field(pattern=r"^[^/\s:]+:\d+$")]
NodeId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClientTls(Model):
    """TLS of a destination. PEM files; the node follows their changes without a restart."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    verify_host: bool = True
    server_name: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _certificate_with_key(self) -> ClientTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: name both, or neither")
        return self
