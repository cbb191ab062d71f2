"""Strict configuration: YAML and mappings to frozen dataclasses."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from jamgym.errors import ConfigError, unknown_name_message

T = TypeVar("T")


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Unlike plain PyYAML, a key that is given twice is refused and ``1e-4`` is a number.

    Raises:
        ConfigError: There is no such file, or it is not text, not YAML, or not a mapping.
    """
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot read the config {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8; expected `key: value` lines.") from error
    try:
        found = yaml.load(text, Loader=_strict_loader())  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}; expected `key: value` lines.")
    return found


def parse_yaml(text: str) -> Any:
    """Return the value of one piece of YAML, or `text` itself if it is not YAML.

    >>> parse_yaml("1e-4")
    0.0001
    """
    import yaml

    try:
        return yaml.load(text, Loader=_strict_loader())  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        return text


def _strict_loader() -> Any:
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, (list, dict)):
                    problem = f"{key!r} is no key; expected a name"
                elif key in seen:
                    problem = f"{key!r} is given twice"
                else:
                    seen.add(key)
                    continue
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            return super().construct_mapping(node, deep)

    # YAML 1.1 takes 1e-4, without a dot, for a string.
    number = re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def config_from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "", start: T | None = None) -> T:
    """Build the dataclass `cls` from `mapping`, strictly and recursively.

    A nested dataclass starts from the value that its field has by default, which need not be what its own class has.

    Args:
        cls: A dataclass with plain fields: int, float, str, bool, None, Path, Literal, tuple, list, dict,
            unions of them, and other dataclasses.
        mapping: Field name to value, as read from YAML or JSON. Missing fields take their values from `start`.
        where: Dotted path of `mapping`, for messages.
        start: What `mapping` changes; None for the defaults of `cls`.

    Raises:
        ConfigError: A key is unknown (the message names the nearest valid one), a value has the wrong
            type, or a field without default is missing.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     steps: int = 10
        >>> config_from_mapping(Settings, {"steps": 5})
        Settings(steps=5)
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"{where or cls.__name__} is {mapping!r}; expected a mapping with the keys of {cls.__name__}."
        )
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}  # type: ignore[arg-type]
    check_keys(mapping, known, "config key", where)
    values: dict[str, Any] = {}
    for name, field in known.items():
        path = f"{where}.{name}" if where else name
        before = field_default(field) if start is None else getattr(start, name)
        if name in mapping:
            values[name] = convert(mapping[name], hints[name], path, before)
        elif before is MISSING:
            raise ConfigError(f"{path} is missing; {cls.__name__} has no default for it.")
        else:
            values[name] = before
    return cls(**values)


def field_default(field: Field[Any]) -> Any:
    """Return the default of a dataclass's field, or `dataclasses.MISSING` if it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def check_keys(given: Iterable[str], known: Iterable[str], kind: str, where: str = "") -> None:
    """Raise `ConfigError` for the first key of `given` that is not in `known`."""
    known = list(known)
    for key in given:
        if key not in known:
            prefix = f"{where}." if where else ""
            raise ConfigError(unknown_name_message(kind, f"{prefix}{key}", [prefix + name for name in known]))


def check_known(
    config_class: type[Any], mapping: Mapping[str, Any], extra: Iterable[str] = (), where: str = ""
) -> None:
    """Raise `ConfigError` if `mapping`, or a mapping inside it, has a key that the dataclass has not."""
    hints = typing.get_type_hints(config_class)
    names = [field.name for field in fields(config_class)]
    check_keys(mapping, [*names, *(key for key in extra if key not in names)], "config key", where)
    for name, value in mapping.items():
        annotation = hints.get(name)
        if is_dataclass(annotation) and isinstance(annotation, type) and isinstance(value, Mapping):
            check_known(annotation, value, where=f"{where}.{name}" if where else name)


def convert(value: Any, annotation: Any, where: str, start: Any = None) -> Any:
    """Return `value` as the type `annotation`, without guessing.

    Allowed: int for float, a list for a tuple, a str for a Path, a mapping for a dataclass: what it leaves
    out comes from `start`, if that is one. A bool is never a number.

    Raises:
        ConfigError: `value` does not fit.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is inspect.Parameter.empty:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, annotation, args, where, start)
    if origin is Literal:
        if value in args and type(value) in {type(arg) for arg in args}:
            return value
        if isinstance(value, str):
            raise ConfigError(f"{where}: {unknown_name_message('choice', value, map(str, args))}")
    elif is_dataclass(annotation) and isinstance(annotation, type):
        if isinstance(value, annotation):
            return value
        return config_from_mapping(annotation, value, where, start if isinstance(start, annotation) else None)
    elif origin in (tuple, list) or annotation in (tuple, list):
        return _convert_sequence(value, annotation, origin or annotation, args, where)
    elif isinstance(origin, type) and issubclass(origin, Mapping) or annotation is dict:
        if isinstance(value, Mapping):
            item = args[1] if args else Any
            return {key: convert(part, item, f"{where}.{key}") for key, part in value.items()}
    elif annotation is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif annotation in (None, type(None)):
        if value is None:
            return None
    elif annotation is Path:
        if isinstance(value, (str, Path)):
            return Path(value)
    elif isinstance(annotation, type):
        if isinstance(value, annotation):
            return value
    else:
        # Something this loader does not know, such as a protocol of a third party: its owner checks it.
        return value
    raise ConfigError(f"{where} is {value!r} ({type(value).__name__}); expected {type_name(annotation)}.")


def _convert_union(value: Any, annotation: Any, args: tuple[Any, ...], where: str, start: Any) -> Any:
    # An exact type first, so that 1 stays an int in `float | int` and True a bool.
    for arg in sorted(args, key=lambda arg: arg is not type(value)):
        try:
            return convert(value, arg, where, start)
        except ConfigError as error:
            if is_dataclass(arg) and isinstance(value, Mapping):
                raise error
    raise ConfigError(f"{where} is {value!r} ({type(value).__name__}); expected {type_name(annotation)}.")


def _convert_sequence(value: Any, annotation: Any, kind: Any, args: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(
            f"{where} is {value!r} ({type(value).__name__}); expected {type_name(annotation)}, like [1, 2]."
        )
    if kind is list or len(args) == 2 and args[1] is Ellipsis or not args:
        item = args[0] if args else Any
        return kind(convert(part, item, f"{where}[{index}]") for index, part in enumerate(value))
    if len(value) != len(args):
        raise ConfigError(f"{where} has {len(value)} entries; expected {len(args)}.")
    return tuple(
        convert(part, arg, f"{where}[{index}]") for index, (part, arg) in enumerate(zip(value, args, strict=True))
    )


def type_name(annotation: Any) -> str:
    """Return a short name of a type for messages.

    >>> type_name(tuple[int, ...])
    'tuple[int, ...]'
    """
    if typing.get_origin(annotation) is None and isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "")
