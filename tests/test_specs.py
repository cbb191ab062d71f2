from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jamgym.errors import ConfigError, UnknownNameError
from jamgym.registry import Registry
from jamgym.specs import check_spec, create_from_spec, spec_name, split_spec


class Plain:
    """A plug-in."""

    def __init__(self, path: str | Path, *, alpha: float = 1.0, size: tuple[int, int] = (1, 1)) -> None:
        self.path, self.alpha, self.size = path, alpha, size


class Open:
    """A plug-in that takes anything."""

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs


@pytest.fixture
def registry() -> Registry:
    return Registry("corpus", "jamgym.none", {"plain": f"{__name__}:Plain", "open": f"{__name__}:Open"})


def test_specs_make_objects(registry):
    made = create_from_spec(registry, {"name": "plain", "path": "d", "size": [2, 3]}, {"alpha": 0.5, "rate": 1})
    assert (made.path, made.alpha, made.size) == ("d", 0.5, (2, 3))
    assert create_from_spec(registry, {"name": "plain", "path": "d", "alpha": 2}, {"alpha": 0.5}).alpha == 2.0
    assert create_from_spec(registry, f"{__name__}:Plain", {"path": "p"}).path == "p"
    assert create_from_spec(registry, {"name": "open", "x": 1}, {"y": 2}).kwargs == {"x": 1, "y": 2}
    assert spec_name({"name": "plain"}) == spec_name("plain") == "plain"


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("plane", UnknownNameError, "Unknown corpus 'plane'. Did you mean 'plain'"),
        ({"name": "plane"}, UnknownNameError, "Did you mean 'plain'"),
        ({"path": "d"}, ConfigError, "mapping with `name`"),
        (3, ConfigError, "expected a name"),
        ("plain", ConfigError, "'plain' needs path; give --corpus.path VALUE"),
        ({"name": "plain", "path": "d", "alfa": 1}, ConfigError, "'alfa'. Did you mean 'alpha'"),
        ({"name": "plain", "path": 3}, ConfigError, "corpus.path is 3"),
        ({"name": "plain", "path": "d", "alpha": "x"}, ConfigError, "corpus.alpha is 'x' .str.; expected float"),
    ],
)
def test_wrong_specs_are_named(registry, spec, error, message):
    for use in (create_from_spec, check_spec):
        with pytest.raises(error, match=message):
            use(registry, spec)


def test_a_spec_is_split_without_importing():
    lazy = Registry("reward", "jamgym.none", {"broken": "no_such_module:Thing"})
    assert split_spec(lazy, {"name": "broken", "x": 1}) == ("broken", {"x": 1})


def test_arguments_that_the_caller_adds_are_not_missed(registry):
    check_spec(registry, "plain", supplied=("path",))
