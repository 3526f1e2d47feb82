"""Sources of settings: flags > `CONNECTOR_<FLAG>` > `--config FILE` (TOML) > default.

`Settings` is the base of all of them. Which settings there are stands in `verbs` (whatever the
broker) and in each broker's own `settings`; the flags are made from their fields by `command_line`.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import AfterValidator, Field, FilePath
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from .errors import Exit, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo

PREFIX = "CONNECTOR_"

HIDDEN = "***"
"""What stands for a value that may be secret."""

_PLATFORM_URL = r"(tcp|udp|sctp)://\S+:\d{1,5}"
_PLATFORM_VARIABLES = [
    (re.compile(name), re.compile(value))
    for name, value in (
        (r"(\w+_)?SERVICE_HOST", r"[0-9a-f.:]+"),
        (r"(\w+_)?SERVICE_PORT(_\w+)?", r"\d{1,5}"),
        (r"(\w+_)?PORT(_\d{1,5}_(TCP|UDP|SCTP))?", _PLATFORM_URL),
        (r"(\w+_)?PORT_\d{1,5}_(TCP|UDP|SCTP)_PROTO", "tcp|udp|sctp"),
        (r"(\w+_)?PORT_\d{1,5}_(TCP|UDP|SCTP)_PORT", r"\d{1,5}"),
        (r"(\w+_)?PORT_\d{1,5}_(TCP|UDP|SCTP)_ADDR", r"[0-9a-f.:]+"),
    )
]
"""What follows PREFIX in the names that Kubernetes makes of a Service, and what is in them.

Such a Service is called `connector`, or `connector-` and more: each pod of its namespace gets them.
"""


class Settings(BaseSettings):
    """Sources of settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_prefix_target="all",
        env_ignore_empty=True,
        extra="ignore",  # a key of another verb; a key of none has been refused before
        frozen=True,
        hide_input_in_errors=True,  # it may be a secret
        validate_by_alias=True,
        validate_by_name=True,
        validate_default=False,
    )

    unused: ClassVar[frozenset[str]] = frozenset()
    """Fields that a command shares with others but does not use: they have no flag there."""

    config: FilePath | None = Field(
        default=None, description="TOML file; keys are flags with underscores"
    )

    @classmethod
    def settings_customise_sources(  # noqa: D102 - the library's hook, its signature
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        renamed = former_names(cls)
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = rename_keys(
                drop_platform_variables(env_settings.env_vars),
                {
                    f"{PREFIX}{old}".lower(): f"{PREFIX}{new}".lower()
                    for old, new in renamed.items()
                },
            )
        path = {**env_settings(), **init_settings()}.get("config")
        values = rename_keys(read_toml(Path(path)), renamed) if path else {}
        return init_settings, env_settings, InitSettingsSource(settings_cls, values)


def list_variables() -> dict[str, str]:
    """Return the variables that are meant for us, by their names as they are."""
    ours = {name: text for name, text in os.environ.items() if name.upper().startswith(PREFIX)}
    return drop_platform_variables(ours)


def drop_platform_variables(variables: Mapping[str, str | None]) -> dict[str, Any]:
    """Leave out what Kubernetes made of a Service; what only looks a little like it stays."""
    return {name: text for name, text in variables.items() if not _is_platforms(name, text or "")}


def _is_platforms(name: str, text: str) -> bool:
    rest = name.upper().removeprefix(PREFIX)
    return rest != name.upper() and any(
        known.fullmatch(rest) and value.fullmatch(text) for known, value in _PLATFORM_VARIABLES
    )


def matching(pattern: str, sentence: str) -> AfterValidator:
    """Refuse text that is not like the whole `pattern`, with a sentence that says what would be."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(sentence)
        return text

    return AfterValidator(check)


def hide_query(url: str) -> str:
    """Put `HIDDEN` in the place of a URL's query and fragment, which may hold a secret."""
    return re.sub(r"(?<=[?#]).+", HIDDEN, url)


def setting_name(name: str, field: FieldInfo) -> str:
    """Return the name by which an operator knows a field: its alias, where it has one."""
    return str(field.validation_alias or name)


def renamed_from(former: str) -> dict[str, Any]:
    """Mark a field (`json_schema_extra=`) as one that had another name, which still works."""
    return {"formerly": former}


def former_name(field: FieldInfo) -> str | None:
    """Return the name that a field had before, if it had one."""
    extra = field.json_schema_extra
    return str(extra["formerly"]) if isinstance(extra, dict) and "formerly" in extra else None


def former_names(kind: type[BaseSettings]) -> dict[str, str]:
    """Return the new name of each setting of `kind` that had another one before."""

    def pairs() -> Iterator[tuple[str, str]]:
        for name, field in kind.model_fields.items():
            if former := former_name(field):
                yield former, setting_name(name, field)

    return dict(pairs())


def rename_keys(values: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return the values with new names in place of former ones; both at once are refused before."""
    return {renamed.get(key, key): value for key, value in values.items()}


def read_toml(path: Path) -> dict[str, Any]:
    """Read the file of `--config`; raises Stop(2) when it is not there or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Stop(f"{path} cannot be read as TOML: {error}", Exit.USAGE) from None
