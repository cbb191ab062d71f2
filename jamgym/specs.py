"""Plug-in specs to objects.

A *spec* names a plug-in: ``"band"``, ``"my.module:Class"``, or a mapping with the name and the
arguments of its constructor: ``{"name": "stems", "path": "songs"}``. It is JSON-native on purpose, so
that configs can be written, compared and read again.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jamgym.config import check_keys, convert, parse_yaml
from jamgym.errors import ConfigError, UnknownNameError, unknown_name_message
from jamgym.registry import Registry

Spec = str | dict[str, Any]


def parse_argument(registry: Registry, name: str, key: str, text: str) -> Any:
    """Return the value that `text` from the command line means for argument `key` of plug-in `name`.

    It is read as YAML, so that 3 is a number, unless the constructor wants text there: a folder may be
    called ``2024``.
    """
    value = parse_yaml(text)
    hint = _hints(registry.resolve(name)).get(key, Any)
    for choice in (value, text):
        try:
            convert(choice, hint, key)
            return choice
        except ConfigError:
            continue
    return value


def split_spec(registry: Registry, spec: Spec) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of `spec` after checking the name; imports nothing.

    Raises:
        ConfigError: `spec` has the wrong form.
        UnknownNameError: The name is not known.
    """
    if isinstance(spec, str):
        name, args = spec, {}
    elif isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        name, args = spec["name"], {key: value for key, value in spec.items() if key != "name"}
    else:
        raise ConfigError(
            f"The {registry.kind} is {spec!r}; expected a name, or a mapping with `name` and its arguments, such as "
            f"{{name: {(registry.names() or ['NAME'])[0]}}}."
        )
    if ":" not in name and name not in registry.names():
        raise UnknownNameError(unknown_name_message(registry.kind, name, registry.names()))
    return name, args


def spec_name(spec: Spec) -> str:
    """Return the name in a spec.

    >>> spec_name({"name": "stems", "path": "songs"})
    'stems'
    """
    return spec if isinstance(spec, str) else str(spec["name"])


def check_spec(registry: Registry, spec: Spec, supplied: Iterable[str] = ()) -> None:
    """Check name and arguments of `spec` against the constructor, without calling it.

    Args:
        registry: Where the name is looked up.
        spec: The spec.
        supplied: Arguments that the caller will add, so that they are not missed.

    Raises:
        UnknownNameError: The name is not known.
        PluginError: The plug-in cannot be imported.
        ConfigError: An argument is unknown, missing or of the wrong type.
    """
    name, args = split_spec(registry, spec)
    _bind(registry, name, registry.resolve(name), args, set(supplied))


def create_from_spec(registry: Registry, spec: Spec, defaults: Mapping[str, Any] | None = None) -> Any:
    """Make the object that `spec` stands for.

    Args:
        registry: Where the name is looked up.
        spec: A name, or a mapping with ``name`` and constructor arguments.
        defaults: Arguments that the caller knows, such as ``{"sample_rate": 16000}``; each is passed if
            the constructor has such a parameter and `spec` does not set it.

    Raises:
        UnknownNameError: The name is not known; the message names the nearest one.
        PluginError: The plug-in cannot be imported.
        ConfigError: An argument is unknown, missing or of the wrong type.
    """
    name, args = split_spec(registry, spec)
    factory = registry.resolve(name)
    defaults = defaults or {}
    bound = _bind(registry, name, factory, args, set(defaults))
    parameters = _parameters(factory)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    extra = {key: value for key, value in defaults.items() if key in parameters or takes_any}
    return factory(**{**extra, **bound})


def _bind(
    registry: Registry, name: str, factory: Callable[..., Any], args: Mapping[str, Any], supplied: set[str]
) -> dict[str, Any]:
    parameters = _parameters(factory)
    named = {key: p for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_keys(args, named, f"argument of {registry.kind} {name!r}:")
    missing = [k for k, p in named.items() if p.default is p.empty and k not in args and k not in supplied]
    if missing:
        flag = f"--{registry.kind}.{missing[0]} VALUE"
        raise ConfigError(f"{registry.kind} {name!r} needs {', '.join(missing)}; give {flag}, or the key in YAML.")
    hints = _hints(factory)
    return {key: convert(value, hints.get(key, Any), f"{registry.kind}.{key}") for key, value in args.items()}


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        # Built-in callables without a signature check their arguments themselves.
        return {"arguments": inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)}


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    target = factory.__init__ if inspect.isclass(factory) else factory
    try:
        return typing.get_type_hints(target)
    except Exception:  # a third party's annotations may name things that exist for type checkers only
        return {}
