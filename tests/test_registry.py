import subprocess
import sys

import pytest

from jamgym import registry
from jamgym.errors import PluginError, UnknownNameError
from jamgym.registry import Registry


@pytest.fixture
def toy():
    return Registry("thing", "jamgym.no_such_group", {"good": "fractions:Fraction", "broken": "no_such_module_xyz:A"})


def test_resolve_names_paths_and_nested_attributes(toy):
    from fractions import Fraction

    assert toy.resolve("good") is Fraction
    assert toy.resolve("collections:OrderedDict.fromkeys")("ab") == {"a": None, "b": None}
    assert toy.create("good", numerator=1, denominator=2) == Fraction(1, 2)


def test_unknown_names_say_the_nearest(toy):
    with pytest.raises(UnknownNameError, match="Did you mean 'good'.*Known: broken, good"):
        toy.resolve("goood")


def test_a_broken_plugin_breaks_only_itself(toy):
    assert toy.names() == ["broken", "good"]
    with pytest.raises(PluginError, match="no_such_module_xyz.*Other thing names still work: good"):
        toy.resolve("broken")
    with pytest.raises(PluginError, match="AttributeError"):
        toy.resolve("fractions:NoSuchClass")
    toy.resolve("good")


def test_a_plugin_that_ends_the_program_when_it_is_imported_is_broken_like_any_other(toy, tmp_path, monkeypatch):
    (tmp_path / "leaving_xyz.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="'leaving_xyz:Thing': SystemExit: 0"):
        toy.resolve("leaving_xyz:Thing")


def test_register(toy):
    toy.register("new", "math:sqrt")
    assert toy.resolve("new")(4.0) == 2.0
    with pytest.raises(ValueError, match="taken"):
        toy.register("good", "math:sqrt")


def test_entry_points_are_listed_and_never_shadow_builtins(monkeypatch):
    from importlib.metadata import EntryPoint

    found = [EntryPoint("theirs", "math:sqrt", "g"), EntryPoint("good", "math:floor", "g")]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "g" else [])
    made = Registry("thing", "g", {"good": "math:ceil"})
    assert made.names() == ["good", "theirs"]
    assert made.resolve("good")(0.5) == 1 and made.resolve("theirs")(9.0) == 3.0


@pytest.mark.parametrize("kind", ["codecs", "corpora", "rewards", "policies"])
def test_every_shipped_name_can_be_imported(kind):
    found = getattr(registry, kind)
    for name in found.names():
        assert callable(found.resolve(name)), name


def test_listing_imports_nothing():
    code = (
        "import sys; from jamgym.registry import rewards, corpora; rewards.names(); corpora.names();"
        "bad = [m for m in ('torch', 'jamgym_rewards', 'jamgym_agents', 'jamgym.corpora.stems') if m in sys.modules];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
