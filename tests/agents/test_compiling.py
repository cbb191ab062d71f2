"""Where loops are compiled, where they are kept, and what happens where they cannot be had."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numba
import pytest

from jamgym.errors import ConfigError
from jamgym_agents.compiled import compiling, make_stream, streaming
from jamgym_agents.compiled.intrinsics import prefer_wide_vectors
from jamgym_agents.compiled.streaming import CompiledStreamingDecoder
from jamgym_agents.streaming import StreamingDecoder

from .helpers import tiny_decoder


def _python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_torch_keeps_its_number_of_threads():
    # In a process of its own: numba sets that of an OpenMP that both may share when its threads start.
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from tests.agents.helpers import tiny_decoder\n"
        "from jamgym_agents.compiled.streaming import CompiledStreamingDecoder\n"
        "CompiledStreamingDecoder(tiny_decoder()); print(torch.get_num_threads())"
    )
    assert _python(code).split() == ["1"]


def test_numba_is_imported_only_where_it_is_asked_for():
    code = (
        "import sys; import jamgym_agents.decoder_policy, jamgym_agents.compiled\n"
        "from tests.agents.helpers import tiny_decoder\n"
        "jamgym_agents.compiled.make_stream(tiny_decoder()); print('numba' in sys.modules)"
    )
    assert _python(code).split() == ["False"]


@pytest.mark.slow
@pytest.mark.parametrize("why", ["there is none", "it is not wanted"])
def test_without_a_pool_that_stays_awake_loops_are_not_shared(tmp_path, why):
    code = (
        "import sys\n"
        f"if {why == 'there is none'}:\n"
        "    sys.modules['numba.np.ufunc.omppool'] = sys.modules['numba.np.ufunc.tbbpool'] = None\n"
        "from tests.agents.test_compiling import *\n"
        "from tests.agents.compiled_helpers import first_chunk\n"
        "assert not compiling.PARALLEL\n"
        "a, b = (first_chunk(make(tiny_decoder())) for make in (StreamingDecoder, CompiledStreamingDecoder))\n"
        "import torch; print(torch.equal(a.codes, b.codes))"
    )
    layer = "default" if why == "there is none" else "workqueue"
    assert _python(code, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_THREADING_LAYER=layer).split() == ["True"]


@pytest.mark.parametrize("broken", ["a file stands there", "numba cannot write"])
def test_where_nothing_can_be_kept_on_disk_loops_are_compiled_all_the_same(tmp_path, monkeypatch, broken):
    folder, njit = tmp_path / "here", compiling.numba.njit
    if broken == "a file stands there":
        folder.write_text("")
    else:

        def refuse(cache=False, **options):
            if cache:
                raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
            return njit(**options)

        monkeypatch.setattr(compiling.numba, "njit", refuse)
    compiled = compiling.compiler(folder)(lambda x: x + 1)
    assert compiled(1) == 2 and compiling.numba.config.CACHE_DIR == os.environ.get("NUMBA_CACHE_DIR", "")
    assert not folder.is_dir() or not list(folder.rglob("*.nbi"))


def test_what_is_compiled_is_kept_for_this_state_of_the_code(tmp_path, monkeypatch):
    monkeypatch.setenv("JAMGYM_CACHE", str(tmp_path))
    monkeypatch.setattr(compiling.numba.config, "CACHE_DIR", "")
    assert compiling.folder_for(True) != compiling.folder_for(False)
    assert compiling.folder_for(True).parent == tmp_path / "compiled"
    monkeypatch.setattr(compiling.numba.config, "CACHE_DIR", str(tmp_path / "mine"))
    assert compiling.folder_for(True).parent == tmp_path / "mine"
    before = compiling.folder_for(True)
    package = tmp_path / "package"
    shutil.copytree(Path(compiling.__file__).parent, package)
    monkeypatch.setattr(compiling, "__file__", str(package / "compiling.py"))
    assert compiling.folder_for(True) == before
    with (package / "arrays.py").open("a") as file:
        file.write("# changed")
    assert compiling.folder_for(True) != before


@pytest.mark.slow
def test_the_next_process_compiles_nothing(tmp_path):
    code = (
        "from tests.agents.helpers import tiny_decoder\n"
        "from jamgym_agents.compiled.streaming import CompiledStreamingDecoder, decoding\n"
        "CompiledStreamingDecoder(tiny_decoder())\n"
        "print(*(sum(part.stats.cache_misses.values()) for part in (decoding.decode, decoding.hear)))"
    )
    assert [_python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() for _ in range(2)] == [["1", "1"], ["0", "0"]]


def test_functions_that_ask_for_the_widest_vectors_are_compiled_for_them():
    @numba.njit
    def asks():
        prefer_wide_vectors()
        return 1

    @numba.njit
    def does_not():
        return 1

    told = ['"prefer-vector-width"="512"' in "".join(f.inspect_llvm().values()) for f in (asks, does_not) if f() == 1]
    assert told == [True, False]


@pytest.mark.parametrize(
    ("machine", "features", "settings", "expected"),
    [
        ("x86_64", {"f16c": True}, {}, True),
        ("x86_64", {"f16c": False}, {}, False),
        ("x86_64", RuntimeError("unknown"), {}, False),
        ("x86_64", {"f16c": True}, {"CPU_NAME": "generic"}, False),
        ("x86_64", {"f16c": True}, {"CPU_NAME": ""}, False),
        ("x86_64", {"f16c": True}, {"CPU_FEATURES": ""}, False),
        ("arm64", {}, {}, True),
    ],
)
def test_half_precision_is_read_where_the_processor_converts_it(monkeypatch, machine, features, settings, expected):
    monkeypatch.setattr(compiling.platform, "machine", lambda: machine)
    monkeypatch.setattr(compiling.binding, "get_host_cpu_features", mock.Mock(side_effect=[features]))
    for name in ("CPU_NAME", "CPU_FEATURES"):
        monkeypatch.setattr(compiling.numba.config, name, settings.get(name))
    assert compiling.converts_halves() is expected


def test_who_waits_for_the_compiler_is_told_once(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "jamgym_agents")
    monkeypatch.setattr(compiling, "_FOLDER", tmp_path)
    for _ in range(2):
        CompiledStreamingDecoder(tiny_decoder())
    assert caplog.text.count("about 40 seconds") == 1
    monkeypatch.setattr(compiling, "_FOLDER", tmp_path / "not there")
    CompiledStreamingDecoder(tiny_decoder())
    assert caplog.text.count("about 40 seconds") == 2


class _Broken:
    def __init__(self, decoder):
        raise OSError(28, "No space left on device")


def test_whatever_befalls_the_compiler_one_can_play(monkeypatch, caplog):
    monkeypatch.setattr(streaming, "CompiledStreamingDecoder", _Broken)
    assert type(make_stream(tiny_decoder(), "auto")) is StreamingDecoder
    assert "Playing without compiled loops" in caplog.text and "No space left on device" in caplog.text
    with pytest.raises(ConfigError, match=r"OSError: .*No space left.*NUMBA_CACHE_DIR.*compiled to false") as caught:
        make_stream(tiny_decoder(), True)
    assert isinstance(caught.value.__cause__, OSError)


def test_without_numba_only_those_who_ask_for_it_are_refused(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("jamgym_agents.compiled.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    decoder = tiny_decoder()
    for compiled in ("auto", False):
        assert type(make_stream(decoder, compiled)) is StreamingDecoder
    with pytest.raises(ConfigError, match=r"pip install 'jamgym\[fast\]'"):
        make_stream(decoder, True)


def test_it_is_taken_where_it_can_be_had():
    decoder = tiny_decoder()
    assert type(make_stream(decoder, "auto")) is type(make_stream(decoder, True)) is CompiledStreamingDecoder
    assert type(make_stream(decoder)) is StreamingDecoder
    with pytest.raises(ConfigError, match="'fast'; give true, false, or auto"):
        make_stream(decoder, "fast")
