"""The command line: flags made from settings, what is refused, and where each value came from."""

from __future__ import annotations

import argparse
import logging
import textwrap
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic_settings import SettingsError

from . import registry
from .errors import Exit, Stop
from .settings import (
    HIDDEN,
    PREFIX,
    Settings,
    former_name,
    former_names,
    hide_query,
    list_variables,
    read_toml,
    rename_keys,
    setting_name,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from typing import NoReturn

    from pydantic.fields import FieldInfo

S = TypeVar("S", bound=Settings)

_log = logging.getLogger("connectors")


def load(kind: type[S], arguments: Sequence[str], prog: str) -> S:
    """Read the settings of one command from all sources, and validate them once.

    Raises Stop(2) with one sentence for anything unknown, missing or out of range, and for a
    setting that one source gives by its former and by its new name.
    """
    flags = _parse_flags(kind, arguments, prog)
    renamed = former_names(kind)
    _check_names(map(_flag, flags), {_flag(old): _flag(new) for old, new in renamed.items()})
    _check_variables()
    if config := flags.get("config") or _list_variables().get(f"{PREFIX}CONFIG"):
        _check_file(config)
    try:
        return kind(**rename_keys(flags, renamed))
    except ValidationError as error:
        raise Stop(_describe_error(error), Exit.USAGE) from None
    except SettingsError as error:
        raise Stop(
            f"the environment holds a value that cannot be read: {error}", Exit.USAGE
        ) from None


Origin = Literal["flag", "environment", "file", "default"]
DEFAULT: Origin = "default"


class Setting(NamedTuple):
    """One setting as it holds; what may be secret is hidden."""

    name: str
    value: Any
    origin: Origin


def explain(settings: Settings, arguments: Sequence[str], prog: str) -> Iterator[Setting]:
    """Give each setting, and which source it came from; takes what `load` was given."""
    renamed = former_names(type(settings))
    flags = rename_keys(_parse_flags(type(settings), arguments, prog), renamed)
    variables = [name.removeprefix(PREFIX).lower() for name in _list_variables()]
    file = rename_keys(read_toml(settings.config), renamed) if settings.config else {}
    sources: list[tuple[Origin, Collection[str]]] = [
        ("flag", flags),
        ("environment", rename_keys(dict.fromkeys(variables), renamed)),
        ("file", file),
    ]
    for name, field in type(settings).model_fields.items():
        key = setting_name(name, field)
        origin = next((origin for origin, keys in sources if key in keys), DEFAULT)
        value = getattr(settings, name)
        hide = hide_query if name == "url" else _hide_secrets
        yield Setting(key, hide(value), origin)


def _hide_secrets(value: object) -> object:
    """A table goes to the library as it is: any text in it, and any table, may be a secret."""
    if isinstance(value, dict):
        return {k: v if isinstance(v, bool | int | float) else HIDDEN for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def _describe_error(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    flag = _flag(str(first["loc"][0])) if first["loc"] else ""
    if first["type"] == "missing":
        return f"{flag} is required"
    message = first["msg"].removeprefix("Value error, ")
    return f"{flag}: {message[0].lower()}{message[1:]}" if flag else message


# What is refused, whichever command asks


def _list_variables() -> dict[str, str]:
    """Return the variables that are set and are ours, by their names in upper case."""
    return {name.upper(): value for name, value in list_variables().items() if value}


def _list_former_names() -> dict[str, str]:
    """Return the new name of every setting, of whichever command, that had another one before."""
    pairs = (former_names(kind).items() for kind in registry.KINDS.values())
    return dict(chain.from_iterable(pairs))


def _check_variables() -> None:
    known = {PREFIX + name.upper() for name in registry.list_settings()}
    _refuse_unknown("the environment", [n for n in list_variables() if n.startswith(PREFIX)], known)
    former = _list_former_names().items()
    renamed = {PREFIX + old.upper(): PREFIX + new.upper() for old, new in former}
    _check_names(_list_variables(), renamed)


def _check_file(path: str) -> None:
    values = read_toml(Path(path))
    _refuse_unknown(path, values, registry.list_settings())
    _check_names(values, _list_former_names())


def _refuse_unknown(where: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise Stop(2) for a name that no command knows: it would be taken to have an effect."""
    for name in names:
        if name not in known:
            raise Stop(f"{where} sets {name}, which is unknown{_suggest(name, known)}", Exit.USAGE)


def _check_names(names: Iterable[str], renamed: Mapping[str, str]) -> None:
    """Warn of former names; raise Stop(2) when one stands beside its new name."""
    given = set(names)
    for former, new in renamed.items():
        if former in given:
            if new in given:
                raise Stop(f"{former} is the former name of {new}: give one of them", Exit.USAGE)
            _log.warning("%s is now called %s; the former name still works", former, new)


def _suggest(word: str, known: Collection[str]) -> str:
    matches = get_close_matches(word, known, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


# Flags


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Stop(f"{message} ({self.prog} --help lists the flags)", Exit.USAGE)


def _parse_flags(kind: type[Settings], arguments: Sequence[str], prog: str) -> dict[str, Any]:
    """Return what the command line sets, as text: the model converts it."""
    parser = _make_parser(kind, prog)
    found, unknown = parser.parse_known_intermixed_args(list(arguments))
    for word in unknown:
        flag = word.partition("=")[0]
        if flag in _list_unused(kind):
            parser.error(
                f"{flag} is a flag of other commands, and has no effect here: leave it out"
            )
        visible = [each for each in parser._actions if each.help != argparse.SUPPRESS]  # noqa: SLF001 - no public list
        known = [f for action in visible for f in action.option_strings]
        parser.error(f"{flag} is unknown{_suggest(flag, known)}")
    return vars(found)


def _make_parser(kind: type[Settings], prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [flags]" + (" [PATH ...]" if "paths" in kind.model_fields else ""),
        description=textwrap.dedent(f"    {kind.__doc__}"),
        epilog="Each flag can also be set as CONNECTOR_<FLAG>, or in the file of --config.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for title, fields in reversed(list(_groups(kind))):
        group = parser.add_argument_group(title)
        for name, field in fields.items():
            _add_flag(group, setting_name(name, field), field)
            if former := former_name(field):
                group.add_argument(_flag(former), help=argparse.SUPPRESS)
    return parser


def _groups(kind: type[Settings]) -> Iterator[tuple[str, dict[str, FieldInfo]]]:
    """Give the fields under the class that first named them."""
    seen: set[str] = set()
    for group in reversed(kind.__mro__):
        if issubclass(group, Settings):
            fields = {n: kind.model_fields[n] for n in group.model_fields if n not in seen}
            seen |= set(fields)
            fields = {n: field for n, field in fields.items() if n not in kind.unused}
            if fields:
                yield str(group.__doc__).rstrip("."), fields


def _list_unused(kind: type[Settings]) -> set[str]:
    """The flags of settings that this command shares with others but does not use."""
    unused = {name: kind.model_fields[name] for name in kind.unused & set(kind.model_fields)}
    flags = {_flag(setting_name(name, field)) for name, field in unused.items()}
    return flags | {_flag(former) for field in unused.values() if (former := former_name(field))}


def _add_flag(group: argparse._ArgumentGroup, key: str, field: FieldInfo) -> None:
    if field.annotation == dict[str, Any]:
        return  # a table has no flag
    if field.annotation == list[Path]:
        group.add_argument(key, nargs="*", metavar="PATH", help=field.description)
    elif get_origin(field.annotation) is list:
        form = "FIELD=VALUE"
        group.add_argument(_flag(key), action="append", metavar=form, help=field.description)
    elif field.annotation is bool:
        action = argparse.BooleanOptionalAction
        group.add_argument(_flag(key), dest=key, action=action, help=field.description)
    else:
        group.add_argument(_flag(key), dest=key, metavar=_metavar(field), help=_help(field))


def _metavar(field: FieldInfo) -> str:
    choices = [str(choice) for choice in _choices(field.annotation)]
    return "{" + ",".join(choices) + "}" if choices else "VALUE"


def _choices(annotation: object) -> Iterator[object]:
    for part in get_args(annotation):
        yield from (part,) if isinstance(part, str) else _choices(part)


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    if field.is_required():
        return f"{text} (required)"
    return (
        text
        if field.default in (None, "") or field.default_factory
        else f"{text} (default: {field.default})"
    )
