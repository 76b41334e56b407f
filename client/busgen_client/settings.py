"""Settings of a node: one TOML file (node.toml), overridden by BUSGEN_NODE__SECTION__NAME variables."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import SettingsConfigDict

from busgen_client.pacs import PacsSettings
from busgen_client.storage_keys import StorageSettings
from busgen_core.settings import TomlSettings, read_settings
from busgen_core.wire import Name
from busgen_privacy.deidentify import BASIC, Choices
from busgen_privacy.dp.plan import Mechanism, Subset
from busgen_privacy.policy import CONSORTIUM_GATE, Policy, tightened

CONFIG_VARIABLE = "BUSGEN_NODE_CONFIG"  # path of node.toml, for the processes of 'busgen-node start'


class HubSettings(BaseModel):
    """How to reach the hub.

    Attributes:
        address: HOST:PORT of the hub's one public port.
        ca_file: PEM of the authority that vouches for the hub's certificate.
        bundle_sha256: Digests of the Flower bundles that may run here; no other bundle is unpacked or imported.
    """

    model_config = ConfigDict(extra="forbid")

    address: str
    ca_file: Path
    bundle_sha256: tuple[str, ...]


class AdaptSettings(BaseModel):
    """How much work an adaptation may be.

    Attributes:
        mechanisms: Mechanisms to run; not given, the planner chooses by what rehearsals support.
        subset: Parameters that DP-SGD trains; not given, the planner's choice by size.
        steps: DP-SGD steps, T; not given, the planner's choice by the time allowed.
        patient_rate: Chance that a patient enters a step, q; not given, the planner's choice by the time allowed.
        draws: Noise draws for each image of a step, K.
        threads: Torch threads of the worker; 0 leaves it to torch.
        minutes: Time that a job may take by the planner's reckoning: it cuts the work to fit, and refuses what cannot be cut so far.
    """

    model_config = ConfigDict(extra="forbid")

    mechanisms: tuple[Mechanism, ...] | None = None
    subset: Subset | None = None
    steps: int | None = Field(default=None, ge=1)
    patient_rate: float | None = Field(default=None, gt=0, le=1)
    draws: int = Field(default=1, ge=1)
    threads: int = Field(default=0, ge=0)
    minutes: float | None = Field(default=None, gt=0)


class AuditSettings(BaseModel):
    """What the audit of a release has beside the campaign's foundation.

    Attributes:
        public: Folder of public images, of nobody here, with an ``images.csv`` (columns ``file``, ``patient``): attacks are calibrated on them,
            and re-identification, which needs 20 patients of several images, runs. With a column ``device`` the report says which of these scanners
            released images look like. A job copies them when it begins. Not given, images of the foundation stand in, and neither is run.
        shadows: Networks adapted to half of the holdout by the plan of the attacked one, for the reference-model attack; each costs what
            that DP-SGD costs. 0, or a plan without DP-SGD: the attack is not run, and the report says so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    public: Path | None = None
    shadows: int = Field(default=0, ge=0, le=16)

    def below(self, base: Path) -> "AuditSettings":
        """The same with its path relative to ``base``."""
        return self if self.public is None else self.model_copy(update={"public": base / self.public})


class LabelSettings(BaseModel):
    """How labels are read.

    Attributes:
        mapping: TOML file that says which histology is of which class, and how the columns of the site's export are called; not given, the one
            that is shipped (``intake/histology.toml``): copy it, change it, name it here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mapping: Path | None = None


class ConsoleSettings(BaseModel):
    """The node's console.

    Attributes:
        serve: Whether 'busgen-node start' keeps the console running.
        port: Port on 127.0.0.1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    serve: bool = False
    port: int = Field(default=8610, ge=1024, le=65535)


class NodeSettings(TomlSettings):
    """All settings of a node.

    Attributes:
        site: The hospital's name in the consortium.
        data: Folder of everything the node stores; relative to the TOML file.
        runtime_port: Loopback port between the SuperNode and its ClientApp.
        hub: How to reach the hub.
        adapt: How much work an adaptation may be.
        audit: What the audit has to go by.
        pacs: Whom it speaks DICOM with.
        deidentify: What is kept of DICOM headers.
        labels: How labels are read.
        storage: How files at rest are sealed.
        console: Whether and where the console is served.
        policy: The hospital's limits.
    """

    model_config = SettingsConfigDict(env_prefix="BUSGEN_NODE__", env_nested_delimiter="__", extra="forbid")

    site: Name
    data: Path
    runtime_port: int = Field(default=9094, ge=1024, le=65535)
    hub: HubSettings
    adapt: AdaptSettings = AdaptSettings()
    audit: AuditSettings = AuditSettings()
    pacs: PacsSettings = PacsSettings()
    deidentify: Choices = BASIC
    labels: LabelSettings = LabelSettings()
    storage: StorageSettings = StorageSettings()
    console: ConsoleSettings = ConsoleSettings()
    policy: Policy


def load_settings(file: Path) -> NodeSettings:
    """Read ``node.toml``; relative paths are relative to it.

    Raises:
        ConfigError: missing, not TOML, or a value outside its range; names the settings that are wrong.
        PolicyError: a threshold of the gate is looser than the consortium's; names each.
    """
    settings = read_settings(NodeSettings, file, missing="run 'busgen-node join' first")
    tightened(settings.policy.gate, CONSORTIUM_GATE)
    base = file.parent
    hub = settings.hub.model_copy(update={"ca_file": base / settings.hub.ca_file})
    labels = settings.labels if settings.labels.mapping is None else LabelSettings(mapping=base / settings.labels.mapping)
    below = {"pacs": settings.pacs.below(base), "storage": settings.storage.below(base), "labels": labels, "audit": settings.audit.below(base)}
    return settings.model_copy(update={"data": base / settings.data, "hub": hub, **below})
