"""Settings of the ways in over the network: the section ``[pacs]`` of node.toml. Who may send, whom to ask, and how much to hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, model_validator

from busgen_core.wire import Name

# PS3.5 table 6.2-1: up to 16 characters of ISO 646, no backslash, no control character, no space at the ends.
AeTitle = Annotated[str, Field(pattern=r"^[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class PeerSettings(BaseModel):
    """One system that the node speaks DICOM with.

    Attributes:
        ae_title: Its application entity title.
        host: Its name or address. Associations that come from elsewhere are refused.
        port: Where it listens; storage commitments are answered there, queries and retrieves are sent there.
        tls: Whether it is reached over TLS.
        retrieve: How objects are fetched: over the same association ("get"), or sent to this node's own port ("move"), where the peer
            must know this node by title, address and port.
        sends: Whether it may send objects to this node.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ae_title: AeTitle
    host: str = Field(min_length=1)
    port: Port = 104
    tls: bool = False
    retrieve: Literal["get", "move"] = "get"
    sends: bool = True


class DicomWebSettings(BaseModel):
    """A DICOMweb service (PS3.18).

    Attributes:
        url: Its root, below which ``studies`` lies.
        token_file: File with a bearer token (RFC 6750).
        password_file: File with ``user:password`` for basic authentication (RFC 7617).
        ca_file: PEM of the authority that vouches for its certificate; not given, those that Python's requests trusts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: HttpUrl
    token_file: Path | None = None
    password_file: Path | None = None
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if self.token_file and self.password_file:
            raise ValueError("give token_file or password_file, not both")
        return self


class PacsSettings(BaseModel):
    """How this node speaks DICOM.

    Attributes:
        ae_title: This node's application entity title.
        address: Address to listen on.
        port: Port to listen on.
        receive: Whether 'busgen-node start' keeps the receiver running.
        labels: Labels of what is received, as ``labels.read_labels`` takes them; read again when they change.
        associations: Associations at a time; more are refused.
        spool_gib: Objects that wait to be taken in, GiB; at this size more are refused until some are taken in. As much may be coming in beside them.
        free_gib: Room that must stay free on the disk, GiB; with less, objects are refused.
        commitment: Answer storage commitments. The node keeps no original: 'committed' means that an object's clean frames are in the cohort.
        certificate_file: PEM of this node's certificate; with it, only TLS is accepted.
        key_file: PEM of the certificate's key.
        ca_file: PEM of the authority that vouches for peers; with it and a certificate, peers must show theirs.
        peers: Systems by name. Whoever is not here is refused.
        dicomweb: A DICOMweb service to pull from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ae_title: AeTitle = "BUSGEN"
    address: str = "127.0.0.1"
    port: Port = 11112  # registered with IANA for DICOM
    receive: bool = False
    labels: Path | None = None
    associations: int = Field(default=8, ge=1, le=100)
    spool_gib: float = Field(default=20.0, gt=0)
    free_gib: float = Field(default=2.0, ge=0)
    commitment: bool = False
    certificate_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = None
    peers: Mapping[Name, PeerSettings] = {}
    dicomweb: DicomWebSettings | None = None

    @model_validator(mode="after")
    def _whole_certificate(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together")
        return self

    @model_validator(mode="after")
    def _one_peer_a_title(self) -> Self:
        """A title says who asks, and whom to answer: PS3.8 annex C.1."""
        titles = [peer.ae_title for peer in self.peers.values()]
        if len(set(titles)) < len(titles):
            raise ValueError("two peers have one ae_title; a title stands for one system at one address")
        return self

    def below(self, base: Path) -> "PacsSettings":
        """The same settings with relative paths resolved against the folder of node.toml."""
        web = self.dicomweb and self.dicomweb.model_copy(update=_below(base, self.dicomweb, ("token_file", "password_file", "ca_file")))
        mine = _below(base, self, ("labels", "certificate_file", "key_file", "ca_file"))
        return self.model_copy(update={**mine, "dicomweb": web})


def _below(base: Path, settings: BaseModel, names: tuple[str, ...]) -> dict[str, Path]:
    return {name: base / path for name in names if (path := getattr(settings, name)) is not None}
