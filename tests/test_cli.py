from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

import jamgym
from jamgym import cli, registry
from jamgym.commands.parsing import parse
from jamgym.commands.table import COMMANDS, Command
from jamgym.config import read_yaml
from jamgym.errors import ConfigError, CorpusError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Optimizer:
    """How to step.

    Attributes:
        rate: Learning rate.
    """

    rate: float = 1e-3


@dataclass(frozen=True)
class FakeConfig:
    """Settings of the fake.

    Attributes:
        total_steps: How many steps the fake takes.
        t_f: Future visibility in frames.
        mode: What to do.
        chunks: Chunk sizes in frames.
        corpus: Where songs come from.
        reward: What is scored.
        latency: A spec that has no registry.
        policies: What is compared.
        optimizer: How to step.
        limit: Songs that are used; null uses all.
        instruments: Classes that are played; null allows all.
    """

    total_steps: int = 3
    t_f: int = -25
    mode: Literal["work", "fail", "stop", "kill", "refuse"] = "work"
    chunks: tuple[int, ...] = (1, 5)
    corpus: str | dict[str, Any] = "fake"
    reward: str | dict[str, Any] = "fake"
    latency: str | dict[str, Any] | tuple[str | dict[str, Any], ...] = "none"
    policies: tuple[str | dict[str, Any], ...] = ("fake",)
    optimizer: Optimizer = field(default_factory=Optimizer)
    limit: int | None = 64
    instruments: tuple[str, ...] | None = None


class FakePlugin:
    """Corpus, reward and policy in one."""

    def __init__(self, path: str | None = None, alpha: float = 1.0) -> None:
        self.path, self.alpha = path, alpha


class NeedyCorpus:
    """Has an argument without default."""

    def __init__(self, path: str, sample_rate: int) -> None:
        self.path = path


SEEN: list[FakeConfig] = []


def fake(config: FakeConfig, run: Any) -> dict[str, float]:
    """Do as `config.mode` says."""
    SEEN.append(config)
    if config.mode == "refuse":
        raise ConfigError("The checkpoint has another codec.")
    run.log(0, {"loss": 1.0})
    if config.mode == "fail":
        raise CorpusError("song.wav is broken.")
    if config.mode == "stop":
        os.kill(os.getpid(), signal.SIGINT)
        assert run.stop_requested
    if config.mode == "kill":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    return {"coherence": 0.5}


@pytest.fixture(autouse=True)
def table(monkeypatch, tmp_path):
    command = Command("fake", "Do nothing much.", f"{__name__}:FakeConfig", f"{__name__}:fake", ("jamgym fake",))
    monkeypatch.setattr(cli, "COMMANDS", (command, *COMMANDS))
    for known in (registry.corpora, registry.rewards, registry.policies):
        monkeypatch.setattr(known, "_paths", {"fake": f"{__name__}:FakePlugin", "needy": f"{__name__}:NeedyCorpus"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAMGYM_DEBUG", raising=False)
    SEEN.clear()


def test_settings_come_from_files_then_options(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("total_steps: 5\nt_f: 3\noptimizer: {rate: 1e-5}\ncorpus: {name: fake, path: q}\n")
    (tmp_path / "b.yaml").write_text("t_f: 4\nseed: 9\n")
    argv = "fake --total-steps 7 --config a.yaml --config=b.yaml --out r --corpus.alpha 3 --chunks [2,3] --quiet"
    assert cli.main(argv.split()) == 0
    assert SEEN == [
        FakeConfig(
            total_steps=7,
            t_f=4,
            chunks=(2, 3),
            corpus={"name": "fake", "path": "q", "alpha": 3},
            optimizer=Optimizer(1e-5),
        )
    ]
    assert json.loads(Path("r/run.json").read_text()) | {"started": "", "updated": ""} == {
        "command": "fake",
        "seed": 9,
        "status": "finished",
        "started": "",
        "updated": "",
    }
    shown = capsys.readouterr()
    assert "coherence  0.5" in shown.out and "Run folder: r" in shown.out
    assert shown.err == ""


def test_the_written_config_gives_the_same_settings_again():
    argv = f"fake --out r --corpus fake --corpus.path d --reward {__name__}:FakePlugin --reward.alpha=0.5 --t_f -3"
    assert cli.main(argv.split()) == 0
    assert cli.main("fake --config r/config.yaml --out s".split()) == 0
    assert SEEN[0] == SEEN[1]
    assert SEEN[0].corpus == {"name": "fake", "path": "d"}
    assert SEEN[0].reward == {"name": f"{__name__}:FakePlugin", "alpha": 0.5}
    assert read_yaml("r/config.yaml") == read_yaml("s/config.yaml")


def test_a_new_plugin_name_drops_the_arguments_of_the_old_one(tmp_path):
    (tmp_path / "a.yaml").write_text("corpus: {name: fake, path: q}\n")
    assert cli.main(f"fake --config a.yaml --corpus {__name__}:FakePlugin --corpus.alpha 2".split()) == 0
    assert SEEN[0].corpus == {"name": f"{__name__}:FakePlugin", "alpha": 2}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("fakke", "Unknown command 'fakke'. Did you mean 'fake'"),
        ("--versoin", "Unknown option '--versoin'. Did you mean '--version'"),
        ("fake --total_stepz 3", "Did you mean '--total_steps'"),
        ("fake --optimizer.ratee 3", "Did you mean '--optimizer.rate'"),
        ("fake --total_steps x", "total_steps is 'x'; expected int"),
        ("fake --mode wrok", "mode is 'wrok'; expected Literal['work'"),
        ("fake --chunks 5", "chunks is '5'; expected tuple. Write a list: '[5]'."),
        ("fake --instruments bass", "instruments is 'bass'; expected tuple[str, ...] or null. Write a list: '[bass]'."),
        ("fake --limit many", "limit is 'many'; expected int or null."),
        ("fake --reward fakee", "Unknown reward 'fakee'. Did you mean 'fake'"),
        ("fake --corpus fakee", "Unknown corpus 'fakee'. Did you mean 'fake'"),
        ("fake --policies [fakee]", "Unknown policy 'fakee'. Did you mean 'fake'"),
        ("fake --corpus.pathh x", "'pathh'. Did you mean 'path'"),
        ("fake --corpus needy", "'needy' needs path; give --corpus.path VALUE"),
        ("fake --reward.alpha loud", "reward.alpha is 'loud'"),
        ("fake --corpus", "--corpus needs a value"),
        ("fake --config bad.yaml", "bad.yaml: Unknown config key 'optimizer.ratee'. Did you mean 'optimizer.rate'"),
        ("fake --config missing.yaml", "Cannot read the config missing.yaml"),
        ("fake --config binary.yaml", "binary.yaml is not text in UTF-8"),
        ("fake --seed -1", "seed is -1"),
        ("fake extra", "extra"),
        ("fake --resume", "no run of fake in runs to resume"),
        ("fake --resume --out nowhere", "no run to resume in nowhere"),
    ],
)
def test_mistakes_end_with_status_2_and_one_message(argv, message, tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("optimizer: {ratee: 1}\n")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128, 256)))
    assert cli.main(argv.split()) == 2
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err
    assert shown.err.count("\n") == 1 and shown.out == ""
    assert not Path("runs").exists() and not SEEN


def test_a_broken_plugin_is_named(capsys, monkeypatch):
    monkeypatch.setitem(registry.rewards._paths, "broken", "no_such_module:Thing")
    assert cli.main("fake --reward broken".split()) == 1
    assert "'broken' could not be imported from 'no_such_module:Thing'" in capsys.readouterr().err


def test_errors_of_the_world_have_status_1_and_debug_shows_where(capsys, monkeypatch):
    assert cli.main("fake --mode fail --out r".split()) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "jamgym: error: song.wav is broken."
    assert json.loads(Path("r/run.json").read_text())["status"] == "failed"
    monkeypatch.setenv("JAMGYM_DEBUG", "1")
    with pytest.raises(CorpusError):
        cli.main("fake --mode fail --out s".split())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(13, "Permission denied", "songs/one"),
            "Permission denied: songs/one. Give yourself permission",
        ),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device. Free some space"),
        (OSError("no such model on the hub"), "no such model on the hub"),
    ],
)
def test_what_the_system_refuses_is_told_with_the_file(error, message, capsys, monkeypatch):
    def refused(config, run):
        raise error

    monkeypatch.setitem(globals(), "fake", refused)
    assert cli.main("fake --out r --quiet".split()) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"jamgym: error: {message}") and shown.count("\n") == 1
    monkeypatch.setenv("JAMGYM_DEBUG", "1")
    with pytest.raises(OSError):
        cli.main("fake --out s --quiet".split())


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_a_damaged_status_is_told_with_what_to_write_into_it(content, capsys):
    assert cli.main("fake --out r --seed 3".split()) == 0
    Path("r/run.json").write_bytes(content)
    assert cli.main("fake --out r".split()) == 2  # still taken for a run
    assert cli.main("fake --out r --resume --seed 3".split()) == 1
    told = capsys.readouterr().err.partition("r/run.json is damaged: ")[2].partition("If this was the run of ")[2]
    Path("r/run.json").write_text(told.partition(", write just that into it")[0])
    assert cli.main("fake --out r --resume --seed 3".split()) == 0


def test_the_newest_run_is_found_beside_a_damaged_one():
    assert cli.main("fake --out runs/a --t_f 4".split()) == 0
    Path("runs/b").mkdir()
    Path("runs/b/run.json").write_text("[1]")
    assert cli.main("fake --resume".split()) == 0
    assert SEEN[-1].t_f == 4


def test_an_existing_run_is_not_overwritten(capsys):
    assert cli.main("fake --out r".split()) == 0
    assert cli.main("fake --out r".split()) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_resume_takes_settings_and_seed_from_the_run():
    assert cli.main("fake --out r --t_f 7 --seed 4 --corpus.path d".split()) == 0
    assert cli.main("fake --out r --resume --total_steps 9".split()) == 0
    assert SEEN[1] == FakeConfig(total_steps=9, t_f=7, corpus={"name": "fake", "path": "d"})
    assert cli.main("fake --out=r --resume --seed 5".split()) == 2


def test_resume_without_folder_takes_the_newest_run_of_the_command():
    for name in ("old", "new"):
        assert cli.main(f"fake --out runs/{name} --t_f {len(name) + (name == 'new')}".split()) == 0
    os.utime("runs/old/run.json", (1, 1))
    Path("runs/other").mkdir()
    Path("runs/other/run.json").write_text('{"command": "else"}')
    assert cli.main("fake --resume".split()) == 0
    assert SEEN[-1].t_f == 4


def test_resume_takes_the_folder_that_a_file_names():
    for name in ("mine", "other"):
        assert cli.main(f"fake --out runs/{name} --t_f {len(name)}".split()) == 0
    os.utime("runs/mine/run.json", (1, 1))
    Path("a.yaml").write_text("out: runs/other\n")
    Path("b.yaml").write_text("out: runs/mine\ntotal_steps: 9\n")
    assert cli.main("fake --config b.yaml --resume".split()) == 0
    assert cli.main("fake --config=a.yaml --config b.yaml --resume".split()) == 0
    assert cli.main("fake --config b.yaml --resume --out nowhere --out=runs/other".split()) == 0
    assert [(config.t_f, config.total_steps) for config in SEEN[2:]] == [(4, 9), (4, 9), (5, 9)]


def test_a_folder_in_a_file_must_be_text(capsys):
    Path("a.yaml").write_text("out: 3\n")
    for argv in ("fake --config a.yaml", "fake --config a.yaml --resume"):
        assert cli.main(argv.split()) == 2
        assert "out is 3 (int)" in capsys.readouterr().err


def test_a_refused_resume_leaves_settings_that_can_be_resumed():
    assert cli.main("fake --out r --t_f 7".split()) == 0
    for _ in range(2):
        assert cli.main("fake --out r --resume --mode refuse --t_f 8".split()) == 2
    assert not Path("r/config.before_resume.yaml").exists()
    assert cli.main("fake --out r --resume".split()) == 0
    assert SEEN[-1] == FakeConfig(t_f=7)


def test_the_default_folder_has_command_and_time():
    assert cli.main(["fake"]) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("fake-2")


def test_ctrl_c_saves_and_ends_with_130(capsys):
    assert cli.main("fake --mode stop --out r".split()) == 130
    assert "jamgym fake --out r --resume" in capsys.readouterr().err
    assert cli.main("fake --mode kill --out s".split()) == 130
    assert json.loads(Path("s/run.json").read_text())["status"] == "stopped"


def test_a_report_is_shown_instead_of_the_figures(capsys, monkeypatch):
    def report(config, run):
        (run.folder / cli.REPORT).write_text("the table\n")
        return {"coherence": 0.5}

    monkeypatch.setitem(globals(), "fake", report)
    assert cli.main("fake --out r".split()) == 0
    assert capsys.readouterr().out.startswith("the table\nRun folder")


def test_help_of_a_command_documents_every_setting(capsys):
    assert cli.main("fake --help".split()) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("How many steps the fake takes.", "--optimizer.rate", "Learning rate.", "default: -25", "jamgym fake"):
        assert part in text
    assert "corpus: fake, needy" in text and "--resume" in text and "--seed" in text
    assert not Path("runs").exists()


@pytest.mark.parametrize("text", ["2024", "no", "1e-4", "a: b", "[x"])
def test_text_stays_text_where_a_plugin_wants_text(text):
    assert cli.main(["fake", "--corpus.path", text, "--reward.alpha", "1e-4"]) == 0
    assert SEEN[0].corpus == {"name": "fake", "path": text}
    assert SEEN[0].reward == {"name": "fake", "alpha": 1e-4}


def test_specs_without_a_registry_take_dotted_arguments_too():
    assert cli.main("fake --latency constant --latency.seconds 5e-2 --quiet --out a".split()) == 0
    assert cli.main(["fake", "--latency", "{name: constant, seconds: 0.05}", "--out", "b"]) == 0
    assert SEEN[0].latency == SEEN[1].latency == {"name": "constant", "seconds": 0.05}


@pytest.mark.parametrize("text", ["my prof: #1/trace.jsonl", "2024", "no", "[x"])
def test_a_path_stays_text_where_no_constructor_says_so(text):
    assert cli.main(["fake", "--latency", "trace", "--latency.path", text, "--latency.seconds", "1"]) == 0
    assert SEEN[0].latency == {"name": "trace", "path": text, "seconds": 1}


def test_a_list_of_specs_may_be_given_where_the_setting_takes_one(capsys):
    assert cli.main(["fake", "--latency", "[none, {name: constant, seconds: 5e-2}]", "--out", "r"]) == 0
    assert cli.main(["fake", "--config", "r/config.yaml", "--out", "s"]) == 0
    assert SEEN[0] == SEEN[1] == FakeConfig(latency=("none", {"name": "constant", "seconds": 0.05}))
    assert cli.main(["fake", "--reward", "[fake]"]) == 2  # one reward: the bracket is part of the name
    assert "Unknown reward '[fake]'" in capsys.readouterr().err
    assert cli.main(["fake", "--config", "r/config.yaml", "--latency.seconds", "1"]) == 2
    assert "--latency.seconds is given, but latency is a list: ['none'" in capsys.readouterr().err


def test_a_null_lifts_what_a_file_or_the_resumed_run_says():
    Path("a.yaml").write_text("limit: 5\n")
    assert cli.main("fake --config a.yaml --limit null --out r".split()) == 0
    assert cli.main("fake --limit=null --out s".split()) == 0
    assert cli.main("fake --config a.yaml --out t".split()) == 0
    assert cli.main("fake --resume --limit null --out t".split()) == 0
    assert cli.main("fake --resume --out t".split()) == 0
    assert [config.limit for config in SEEN] == [None, None, 5, None, None]


def test_null_is_for_settings_that_allow_it(capsys):
    @dataclass(frozen=True)
    class Optional:
        """Settings.

        Attributes:
            reward: What is scored, or None.
            out: Hidden by the run's own option.
        """

        reward: str | dict[str, Any] | None = "fake"
        out: str | None = None

    globals()["Optional"] = Optional
    assert parse("x", "", (), Optional, ["--reward", "null", "--out", "r"]).config == Optional(None)
    assert parse("x", "", (), Optional, ["--out", "r"]).out == Path("r")
    assert cli.main("fake --reward null".split()) == 2
    assert "reward is None" in capsys.readouterr().err


def test_required_settings_may_come_from_the_file(tmp_path):
    @dataclass(frozen=True)
    class Needs:
        """Needs one.

        Attributes:
            size: A size.
        """

        size: int

    globals()["Needs"] = Needs
    (tmp_path / "a.yaml").write_text("size: 3\n")
    assert parse("x", "", (), Needs, ["--config", "a.yaml"]).config.size == 3
    with pytest.raises(ConfigError, match="size is missing; give --size VALUE, or the key in YAML"):
        parse("x", "", (), Needs, [])


def test_version_and_usage(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jamgym {jamgym.__version__}\n"
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command.name in text for command in COMMANDS)
    assert cli.main([]) == 2


def test_the_top_level_help_is_fast_and_needs_no_torch():
    code = "import sys; from jamgym.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 5.0  # a quarter of a second when the machine is idle


def shipped() -> list[Path]:
    return sorted((ROOT / "configs").glob("*/*.yaml"))


def test_every_folder_of_configs_is_a_command():
    assert {path.name for path in (ROOT / "configs").iterdir()} <= {command.name for command in COMMANDS}


@pytest.mark.parametrize("path", shipped(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_configs_load_strictly(path, monkeypatch):
    monkeypatch.undo()  # the real registries
    command = next(command for command in COMMANDS if command.name == path.parent.name)
    config_class, program = command.load()
    request = parse(command.name, command.summary, command.examples, config_class, ["--config", str(path)])
    assert isinstance(request.config, config_class) and callable(program)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help_with_documented_settings(command, capsys):
    assert cli.main([*command.name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert all(example in text for example in command.examples)
    # A setting without a value is written null there, and a group of settings is no file.
    assert re.search(r"\bNone\b", text) is None and "Path to a configuration file" not in text
    assert 2 <= len(command.examples) <= 4
    for example in command.examples:
        together = command.distributed and example.startswith("torchrun ") and f" jamgym.cli {command.name} " in example
        assert together or f"{example} ".startswith(f"jamgym {command.name} ")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["a.wav"], ["--audio", "a.wav"]),
        (["a.wav", "--seconds", "1"], ["--audio", "a.wav", "--seconds", "1"]),
        (["--seconds", "1", "a.wav"], ["--audio", "a.wav", "--seconds", "1"]),
        (["--seconds=1", "a.wav"], ["--audio", "a.wav", "--seconds=1"]),
        (["--t_f", "-25", "a.wav"], ["--audio", "a.wav", "--t_f", "-25"]),
        (["--seconds", "1"], ["--seconds", "1"]),
        (["--t_f", "-25"], ["--t_f", "-25"]),
        (["--quiet", "a.wav"], ["--audio", "a.wav", "--quiet"]),
        (["--k", "5", "--resume", "a.wav"], ["--audio", "a.wav", "--k", "5", "--resume"]),
        (["--audio", "a.wav", "--k", "5", "b.wav"], ["--audio", "a.wav", "--k", "5", "b.wav"]),
        (["--audio=a.wav", "b.wav"], ["--audio=a.wav", "b.wav"]),
        (["--seconds", "1", "a.wav", "--k", "5"], ["--audio", "a.wav", "--seconds", "1", "--k", "5"]),
        (["--quiet", "a.wav", "b.wav"], ["--audio", "a.wav", "--quiet", "b.wav"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_a_word_by_itself_is_named_wherever_it_stands(argv, named):
    assert cli.with_name("audio", argv) == named
