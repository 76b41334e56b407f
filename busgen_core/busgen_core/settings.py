"""Settings from one TOML file, overridden by environment variables: what hub and node have in common."""

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from busgen_core.errors import ConfigError


class TomlSettings(BaseSettings):
    """Base of an installation's settings; subclasses name their fields and the prefix of their variables."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file; nothing else is read."""
        return env_settings, init_settings


Settings = TypeVar("Settings", bound=TomlSettings)


def read_settings(kind: type[Settings], file: Path, *, missing: str) -> Settings:
    """Read a TOML file into settings.

    Args:
        missing: What to do when there is no such file.

    Raises:
        ConfigError: missing, not TOML, or a value outside its range; names the settings that are wrong.
    """
    try:
        return kind(**tomllib.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist; {missing}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{file}: {wrong}") from None
