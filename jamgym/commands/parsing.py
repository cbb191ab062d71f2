"""Reads one command's settings: YAML files first, then the command line, both strictly.

jsonargparse builds the options and the help from the settings' dataclass and its docstring. Plug-ins
have arguments that the dataclass does not know (``--corpus stems --corpus.path DIR``); those are taken
out of the command line first and become a spec (see `jamgym.specs`).
"""

from __future__ import annotations

import argparse
import re
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from jamgym import registry
from jamgym.commands.messages import tidy
from jamgym.config import check_known, config_from_mapping, convert, field_default, parse_yaml, read_yaml
from jamgym.errors import ConfigError, unknown_name_message
from jamgym.registry import Registry
from jamgym.specs import check_spec, parse_argument, split_spec

#: Singular name of a setting to the registry that its values are looked up in.
REGISTRIES: dict[str, Registry] = {
    "codec": registry.codecs,
    "corpus": registry.corpora,
    "reward": registry.rewards,
    "policy": registry.policies,
}
#: What jamgym's settings do not take where jsonargparse offers it: a file for one group of them.
_GROUP_HELP = "Path to a configuration file."
_OTHER_WORDS = {
    "codecs": "codec",
    "corpora": "corpus",
    "rewards": "reward",
    "metrics": "reward",
    "policies": "policy",
}
#: Arguments of plug-ins that the programs fill in.
SUPPLIED = ("codec", "device", "sample_rate", "seed")
RUN_KEYS = ("out", "seed", "quiet")
#: Options that no value follows.
FLAGS = ("--quiet", "--resume", "--help")


@dataclass(frozen=True)
class Request:
    """What the user asks a command to do.

    Attributes:
        config: The command's dataclass.
        out: Run folder, or None for the default.
        seed: Seed of the run.
        resume: Whether to continue the run in `out`.
        quiet: Whether to show no progress.
    """

    config: Any
    out: Path | None
    seed: int
    resume: bool
    quiet: bool


def parse(
    prog: str,
    summary: str,
    examples: Sequence[str],
    config_class: type[Any],
    argv: Sequence[str],
    base: Mapping[str, Any] | None = None,
    quick: bool = False,
) -> Request:
    """Parse `argv` into a `Request`.

    Args:
        prog: Program name for usage messages, such as "jamgym finetune".
        summary: First line of the help.
        examples: Command lines for the help.
        config_class: The settings' dataclass.
        argv: Arguments after the command.
        base: Settings that come before every ``--config``, as those of a run that is resumed.
        quick: Whether there is no run, so that the dataclass alone says what can be set.

    Raises:
        ConfigError: A key is unknown or a value does not fit.
        UnknownNameError: A plug-in's name is not known.
        SystemExit: After ``--help``, with status 0.
    """
    parser = build_parser(prog, summary, examples, config_class, quick)
    specs = dict(spec_fields(config_class))
    rest, spec_options = _take_specs(list(argv), specs)
    given = _parse_options(parser, rest)
    settings: dict[str, Any] = {}
    files = _read_configs(config_class, given.pop("config", None) or [], () if quick else RUN_KEYS)
    for layer in (base or {}, *files, given):
        _merge(settings, layer, specs)
    for path, options in spec_options.items():
        _set(settings, path, _apply_spec(config_class, settings, path, specs[path], options))
    resume = not quick and bool(settings.pop("resume", False))
    run = {} if quick else {key: settings.pop(key) for key in RUN_KEYS if key in settings}
    if "seed" in run and "seed" in {field.name for field in fields(config_class)}:
        settings["seed"] = run["seed"]
    missing = [f.name for f in fields(config_class) if f.name not in settings and field_default(f) is MISSING]
    if missing:
        raise ConfigError(f"{missing[0]} is missing; give --{missing[0]} VALUE, or the key in YAML.")
    config = config_from_mapping(config_class, settings)
    check_plugins(config)
    seed = run.get("seed", getattr(config, "seed", 0))
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; expected an integer of at least 0.")
    out = convert(run.get("out"), Path | None, "out")
    return Request(config, out, seed, resume, bool(run.get("quiet", False)))


def build_parser(prog: str, summary: str, examples: Sequence[str], config_class: type[Any], quick: bool) -> Any:
    """Return the jsonargparse parser of a command."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Keeps the line breaks of the examples."""

    # A quick command has few settings; the names that it cannot use would only be in the way.
    own = {field.name for field in fields(config_class)}
    kinds = sorted(kind for kind in REGISTRIES if not quick or kind in own)
    known = "\n".join(f"  {kind}: {', '.join(REGISTRIES[kind].names())}" for kind in kinds)
    word = "corpus" if "corpus" in kinds else "reward"
    epilog = (
        "examples:\n"
        + "\n".join(f"  {line}" for line in examples)
        + f"\n\nplug-ins (or package.module:Class); give their arguments as --{word} NAME --{word}.ARGUMENT VALUE:\n"
        + known
    )
    parser = ArgumentParser(
        prog=prog,
        usage=f"%(prog)s [--config FILE] {'' if quick else '[--out DIR] '}[--SETTING VALUE ...]",
        description=summary,
        epilog=epilog,
        formatter_class=Formatter,
        exit_on_error=False,
    )
    hide = argparse.SUPPRESS
    group = parser.add_argument_group("settings" if quick else "run")
    group.add_argument(
        "--config", action="append", metavar="FILE", default=hide, help="YAML file of settings; may be repeated"
    )
    if not quick:
        group.add_argument("--out", metavar="DIR", default=hide, help="run folder (default: runs/COMMAND-TIME)")
        group.add_argument(
            "--resume", action="store_true", default=hide, help="continue the run in --out, or the newest one in runs/"
        )
        if "seed" not in own:
            group.add_argument("--seed", type=int, default=0, help="seed of everything random")
        group.add_argument("--quiet", action="store_true", default=hide, help="show no progress")
    taken = {"config"} if quick else {"config", "out", "resume", "quiet"}
    parser.add_class_arguments(config_class, skip=own & taken, fail_untyped=False)
    # Whether something is missing is known only after the YAML files are read.
    # (the attribute's name depends on jsonargparse's version)
    for action in parser._actions:
        action.required = False
        if action.help == _GROUP_HELP:
            action.metavar, action.help = "MAPPING", "all of them as one YAML mapping: '{NAME: VALUE}'"
        # The docstrings speak Python, the command line YAML.
        action.help = re.sub(r"\bNone\b", "null", action.help) if isinstance(action.help, str) else action.help
    for attribute in ("required_args", "_extra_required_keys"):
        getattr(parser, attribute, set()).clear()
    return parser


def spec_fields(config_class: type[Any], prefix: str = "") -> Iterator[tuple[str, Registry | None]]:
    """Yield dotted path and registry (None: the program itself resolves it) of each setting that is a spec."""
    for name, annotation in typing.get_type_hints(config_class).items():
        if is_dataclass(annotation) and isinstance(annotation, type):
            yield from spec_fields(annotation, f"{prefix}{name}.")
        elif _is_spec(annotation):
            yield f"{prefix}{name}", registry_of(name)


def registry_of(name: str) -> Registry | None:
    """Return the registry of a setting by the last word of its name: "reward", "train_corpus", "policies"."""
    word = name.rpartition("_")[2]
    return REGISTRIES.get(_OTHER_WORDS.get(word, word))


def check_plugins(config: Any) -> None:
    """Check every spec in `config`, nested ones and tuples of specs included.

    Raises:
        UnknownNameError: A name is not known.
        ConfigError: An argument of a plug-in is unknown, missing or of the wrong type.
    """
    for name, annotation in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        found = registry_of(name)
        if is_dataclass(value) and not isinstance(value, type):
            check_plugins(value)
        elif found is not None and isinstance(value, (tuple, list)):
            for item in value if any(map(_is_spec, typing.get_args(annotation))) else ():
                _check_plugin(found, item)
        elif found is not None and value is not None and _is_spec(annotation):
            _check_plugin(found, value)


def _check_plugin(found: Registry, spec: Any) -> None:
    if found is registry.policies:
        # The program itself gives a policy most of its arguments (codec, chunk size), which `check_spec`
        # would miss; `create_from_spec` checks them when the policy is made.
        split_spec(found, spec)
    else:
        check_spec(found, spec, supplied=SUPPLIED)


def _is_spec(annotation: Any) -> bool:
    args = typing.get_args(annotation)
    return str in args and any(arg is dict or typing.get_origin(arg) is dict for arg in args)


def _take_specs(argv: list[str], specs: Collection[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Split `argv` into the rest and, per spec, its options: "" for the name, else the argument."""
    rest: list[str] = []
    found: dict[str, dict[str, str]] = {}
    index = 0
    while index < len(argv):
        token = argv[index]
        option, equals, value = token.partition("=")
        path = option[2:].replace("-", "_") if option.startswith("--") else ""
        spec = next((name for name in specs if path == name or path.startswith(f"{name}.")), None)
        if spec is None:
            rest.append(token)
            index += 1
            continue
        if not equals:
            index += 1
            if index == len(argv):
                raise ConfigError(f"{option} needs a value.")
            value = argv[index]
        found.setdefault(spec, {})[path[len(spec) + 1 :]] = value
        index += 1
    return rest, found


def _apply_spec(
    config_class: type[Any], settings: Mapping[str, Any], path: str, found: Registry | None, options: Mapping[str, str]
) -> Any:
    """Return the spec at `path` after the options of the command line; a new name drops old arguments."""
    texts = {key: text for key, text in options.items() if key}
    if options.get("") == "null" and not texts:
        return None
    before = options[""] if "" in options else _get(settings, path, _default(config_class, path))
    if isinstance(before, str) and before.lstrip().startswith(("{", "[") if _takes_list(config_class, path) else "{"):
        before = parse_yaml(before)
    if not texts:
        return before
    option = f"--{path}.{next(iter(texts))}"
    if before is None:
        raise ConfigError(f"{option} is given without --{path} NAME.")
    if isinstance(before, (list, tuple)):
        entry = f"{{name: NAME, {next(iter(texts))}: VALUE}}"
        raise ConfigError(f"{option} is given, but {path} is a list: {list(before)}. Write {entry} into the list.")
    if found is None:
        start = dict(before) if isinstance(before, Mapping) else {"name": before}
        # No constructor says what it wants; a file may be called 2024 or "a: b".
        return {**start, **{key: text if key == "path" else parse_yaml(text) for key, text in texts.items()}}
    name, arguments = split_spec(found, before)
    given = {key: parse_argument(found, name, key, text) for key, text in texts.items()}
    return {"name": name, **arguments, **given}


def _parse_options(parser: Any, argv: list[str]) -> dict[str, Any]:
    known = [option for option in parser._option_string_actions if option.startswith("--")]
    checked, given = [], set()
    for token in argv:
        option, equals, value = token.partition("=")
        if option.startswith("--") and option not in known:
            # The settings are written with underscores; dashes are what fingers type.
            if option.replace("-", "_") not in [name.replace("-", "_") for name in known]:
                names = [name for name in known if not name.endswith("help")]
                raise ConfigError(unknown_name_message("option", option, names))
            option = next(name for name in known if name.replace("-", "_") == option.replace("-", "_"))
        checked.append(option + equals + value)
        given.add(option[2:])
    try:
        found = parser.parse_args(checked, defaults=False)
    except argparse.ArgumentError as error:
        raise ConfigError(tidy(str(error))) from error
    # What was not given may be None as well, in some versions of jsonargparse; a null that was given is a value.
    return {key: value for key, value in found.as_dict().items() if value is not None or key in given}


def _read_configs(config_class: type[Any], paths: Sequence[str], extra: Sequence[str]) -> list[dict[str, Any]]:
    layers = []
    for path in paths:
        layer = read_yaml(path)
        try:
            check_known(config_class, layer, extra)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        layers.append(layer)
    return layers


def _merge(
    into: dict[str, Any], layer: Mapping[str, Any], specs: Mapping[str, Registry | None], where: str = ""
) -> None:
    for key, value in layer.items():
        path = f"{where}.{key}" if where else key
        if isinstance(value, Mapping) and path not in specs:
            inner = into.setdefault(key, {})
            if isinstance(inner, dict):
                _merge(inner, value, specs, path)
                continue
        into[key] = dict(value) if isinstance(value, Mapping) else value


def _get(settings: Mapping[str, Any], path: str, default: Any) -> Any:
    here: Any = settings
    for part in path.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return default
        here = here[part]
    return here


def _set(settings: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        settings = settings.setdefault(part, {})
    settings[last] = value


def _default(config_class: type[Any], path: str) -> Any:
    first, _, rest = path.partition(".")
    value = field_default(next(field for field in fields(config_class) if field.name == first))
    if value is MISSING:
        return _default(typing.get_type_hints(config_class)[first], rest) if rest else None
    for part in rest.split(".") if rest else ():
        value = getattr(value, part)
    return value


def _takes_list(config_class: type[Any], path: str) -> bool:
    """Whether the setting at `path` may be a list; elsewhere a bracket is part of a name."""
    *parents, last = path.split(".")
    for part in parents:
        config_class = typing.get_type_hints(config_class)[part]
    allowed = typing.get_args(typing.get_type_hints(config_class)[last])
    return any((typing.get_origin(kind) or kind) in (tuple, list) for kind in allowed)
