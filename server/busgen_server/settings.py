"""Settings of the hub: one TOML file (hub.toml), overridden by BUSGEN_HUB__NAME variables."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from busgen_core.settings import TomlSettings, read_settings

Port = Annotated[int, Field(ge=1024, le=65535)]
MEBIBYTE = 2**20
CONFIG_VARIABLE = "BUSGEN_HUB_CONFIG"  # path of hub.toml, for the processes of 'busgen-hub start'


class HubSettings(TomlSettings):
    """All settings of the hub.

    Attributes:
        data: Folder of everything the hub stores; relative to the TOML file.
        tracking_uri: MLflow, for its runs and its model registry: the address of a server (http, https) or of a database.
            Without it a SQLite file in the data folder.
        public_host: Address that the gateway listens on: the only one that hospitals reach.
        public_port: Port of the gateway.
        superlink_port: Loopback port of Flower's SuperLink; nothing but the gateway and this machine reaches it.
        dashboard_host: Address that the dashboard listens on. It has no accounts yet: keep it on loopback.
        dashboard_port: Port of the dashboard.
        certificate_names: DNS names and IP addresses in the gateway's certificate; what hospitals connect to.
        chunk_bytes: Largest piece of a foundation or release in one message.
        poll_seconds: Pause between two rounds of questions to the nodes.
        public_images: Public images that admitted releases are compared with: FOLDER, or FOLDER:ROLE to pick rows of its images.csv; relative
            to the TOML file. Without it the hub cannot tell quality, nor leaks of label and scanner.
    """

    model_config = SettingsConfigDict(env_prefix="BUSGEN_HUB__", env_nested_delimiter="__", extra="forbid")

    data: Path
    tracking_uri: str | None = Field(default=None, pattern=r"^(https?|sqlite|postgresql|mysql)(\+\w+)?://\S+$")
    public_host: str = "127.0.0.1"
    public_port: Port = 8443
    superlink_port: Port = 9092
    dashboard_host: str = "127.0.0.1"
    dashboard_port: Port = 8080
    certificate_names: tuple[str, ...] = Field(default=("localhost", "127.0.0.1"), min_length=1)
    chunk_bytes: int = Field(default=4 * MEBIBYTE, ge=64 * 1024, le=64 * MEBIBYTE)
    poll_seconds: float = Field(default=5, gt=0, le=3600)
    public_images: str | None = Field(default=None, min_length=1)


def load_settings(file: Path) -> HubSettings:
    """Read ``hub.toml``; relative paths are relative to it.

    Raises:
        ConfigError: missing, not TOML, or a value outside its range; names the settings that are wrong.
    """
    settings = read_settings(HubSettings, file, missing="run 'busgen-hub init' first")
    public = None if settings.public_images is None else str(file.parent / settings.public_images)
    return settings.model_copy(update={"data": file.parent / settings.data, "public_images": public})
