from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from jamgym.config import config_from_mapping, read_yaml
from jamgym.errors import ConfigError


@dataclass(frozen=True)
class Optimizer:
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True)
class Settings:
    name: str
    steps: int = 10
    fast: bool = False
    mode: Literal["a", "b"] = "a"
    chunks: tuple[int, ...] = (1, 5)
    limit: int | None = None
    corpus: str | dict[str, Any] = "band"
    folder: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass(frozen=True)
class Recipe:
    """Its parts begin with other values than their own classes do."""

    inner: Settings = field(default_factory=lambda: Settings("tuned", 30, optimizer=Optimizer(rate=0.5)))
    spare: Optimizer | None = field(default_factory=lambda: Optimizer(rate=0.25))
    none: Optimizer | None = None


def test_values_are_converted_without_guessing():
    found = config_from_mapping(
        Settings,
        {
            "name": "x",
            "chunks": [2],
            "limit": 3,
            "corpus": {"name": "stems", "path": "d"},
            "folder": "here",
            "weights": {"a": 1},
            "optimizer": {"rate": 1, "betas": [0.5, 1]},
        },
    )
    assert found == Settings(
        name="x",
        chunks=(2,),
        limit=3,
        corpus={"name": "stems", "path": "d"},
        folder=Path("here"),
        weights={"a": 1.0},
        optimizer=Optimizer(1.0, (0.5, 1.0)),
    )
    assert type(found.optimizer.rate) is float


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({}, Recipe()),
        ({"inner": {}}, Recipe()),
        ({"inner": {"steps": 30, "optimizer": {"rate": 0.5}}, "spare": {"rate": 0.25}}, Recipe()),
        ({"inner": {"limit": 3}}, Recipe(Settings("tuned", 30, limit=3, optimizer=Optimizer(0.5)))),
        ({"inner": {"optimizer": {"betas": [0, 1]}}}, Recipe(Settings("tuned", 30, optimizer=Optimizer(0.5, (0, 1))))),
        ({"spare": {"betas": [0, 1]}}, Recipe(spare=Optimizer(0.25, (0, 1)))),
        ({"none": {"betas": [0, 1]}}, Recipe(none=Optimizer(1e-3, (0, 1)))),
        ({"spare": None}, Recipe(spare=None)),
    ],
)
def test_a_part_that_is_changed_keeps_the_rest_of_what_its_field_has_by_default(mapping, expected):
    assert config_from_mapping(Recipe, mapping) == expected


def test_a_mapping_can_change_given_settings():
    start = Settings("x", steps=7, optimizer=Optimizer(0.5))
    found = config_from_mapping(Settings, {"optimizer": {"betas": [0, 1]}}, start=start)
    assert found == Settings("x", steps=7, optimizer=Optimizer(0.5, (0, 1)))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "name is missing"),
        ({"name": "x", "stepz": 1}, "Unknown config key 'stepz'. Did you mean 'steps'"),
        ({"name": "x", "optimizer": {"ratte": 1}}, "'optimizer.ratte'. Did you mean 'optimizer.rate'"),
        ({"name": 3}, "name is 3 .int.; expected str"),
        ({"name": "x", "steps": 1.5}, "steps is 1.5 .float.; expected int"),
        ({"name": "x", "steps": True}, "steps is True .bool.; expected int"),
        ({"name": "x", "steps": "1"}, "expected int"),
        ({"name": "x", "fast": 1}, "expected bool"),
        ({"name": "x", "mode": "c"}, "mode: Unknown choice 'c'"),
        ({"name": "x", "chunks": 5}, "chunks is 5 .int.; expected tuple"),
        ({"name": "x", "chunks": [1, "a"]}, r"chunks\[1\] is 'a'"),
        ({"name": "x", "limit": "many"}, "limit is 'many'"),
        ({"name": "x", "optimizer": 3}, "optimizer is 3; expected a mapping"),
        ({"name": "x", "optimizer": {"betas": [0.1]}}, "optimizer.betas has 1 entries; expected 2"),
        ({"name": "x", "weights": {"a": "b"}}, "weights.a is 'b'"),
    ],
)
def test_wrong_settings_are_named(mapping, message):
    with pytest.raises(ConfigError, match=message):
        config_from_mapping(Settings, mapping)


def test_yaml_is_strict(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("rate: 1e-4\nother: -2E+3\nname: 1e\nlist: [1, 2]\n")
    assert read_yaml(path) == {"rate": 1e-4, "other": -2000.0, "name": "1e", "list": [1, 2]}
    path.write_text("")
    assert read_yaml(path) == {}
    for text, message in (
        ("a: 1\na: 2\n", "'a' is given twice"),
        ("- 1\n", "holds a list"),
        ("a: [1", "not valid YAML"),
        ("? [1, 2]\n: x\n", r"not valid YAML: \[1, 2\] is no key"),
        ("a: {? {b: 1} : x}\n", "{'b': 1} is no key"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_yaml(path)
    path.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"a\.yaml is not text"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="Cannot read the config"):
        read_yaml(tmp_path / "missing.yaml")


def test_yaml_runs_no_code(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("x: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(path)
