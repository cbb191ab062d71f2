import errno
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jamgym import files
from jamgym.config import read_yaml
from jamgym.errors import AudioError, ConfigError
from jamgym.files import RunError, atomic_path, plain
from jamgym.progress import Bars, LineTask
from jamgym.run import Run, read_metrics


def make(folder: Path, **changes) -> Run:
    settings = {"command": "fake", "config": {"steps": 3, "sizes": (1, 2)}, "seed": 5, "quiet": True, **changes}
    return Run.create(folder, **settings)


def test_create_writes_config_versions_and_seed(tmp_path):
    run = make(tmp_path / "a" / "b")
    assert read_yaml(run.folder / "config.yaml") == {"steps": 3, "sizes": [1, 2]}
    assert json.loads((run.folder / "run.json").read_text())["seed"] == 5
    versions = json.loads((run.folder / "versions.json").read_text())
    assert versions["numpy"] == np.__version__
    assert versions["jamgym"] not in ("", "not installed")


def test_refuses_to_overwrite_and_resumes_only_what_fits(tmp_path):
    make(tmp_path / "r")
    with pytest.raises(ConfigError, match="already holds a run.*--resume"):
        make(tmp_path / "r")
    with pytest.raises(ConfigError, match="no run to resume"):
        make(tmp_path / "other", resume=True)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="seed 5, not 6"):
        make(tmp_path / "r", resume=True, seed=6)
    with pytest.raises(ConfigError, match="command 'fake', not 'else'"):
        make(tmp_path / "r", resume=True, command="else")
    assert make(tmp_path / "r", resume=True).resumed


def test_loading_stops_before_the_next_item(tmp_path):
    with make(tmp_path / "r") as run:
        assert list(run.loading("abc", "letters")) == ["a", "b", "c"]
        items = run.loading("abc", "letters")
        assert next(items) == "a"
        run.stop_requested = True
        with pytest.raises(KeyboardInterrupt):
            next(items)
        assert list(run.loading("abc", "letters", stoppable=False)) == ["a", "b", "c"]


def test_a_run_that_was_stopped_before_it_wrote_anything_can_be_started_again(tmp_path):
    with pytest.raises(KeyboardInterrupt), make(tmp_path / "r"):
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "stopped"
    make(tmp_path / "r")


def test_a_run_that_failed_before_it_wrote_anything_can_be_started_again(tmp_path):
    with pytest.raises(RuntimeError), make(tmp_path / "r"):
        raise RuntimeError("wrong path")
    with pytest.raises(RuntimeError), make(tmp_path / "r") as run:
        run.write_json("result.json", {})
        raise RuntimeError("later")
    with pytest.raises(ConfigError, match="already holds a run"):
        make(tmp_path / "r")


def test_changed_settings_are_told_and_the_old_ones_kept(tmp_path, caplog):
    make(tmp_path / "r")
    with caplog.at_level(logging.WARNING, "jamgym"), make(tmp_path / "r", **CHANGED):
        assert "changed settings: steps" in caplog.text
    assert kept_steps(tmp_path / "r") == {"config.yaml": 4, "config.before_resume.yaml": 3}


CHANGED = {"resume": True, "config": {"steps": 4, "sizes": (1, 2)}}


def kept_steps(folder: Path) -> dict[str, int]:
    """Return file to `steps` of every kept config."""
    return {path.name: read_yaml(path)["steps"] for path in folder.glob("config*.yaml")}


@pytest.mark.parametrize("error", [ConfigError("another codec"), RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_resume_that_fails_before_it_writes_leaves_config_and_versions(tmp_path, error):
    make(tmp_path / "r").log(0, {"x": 1.0})
    (tmp_path / "r" / "versions.json").write_text('{"numpy": "0.1"}')
    for _ in range(2):
        with pytest.raises(type(error)), make(tmp_path / "r", **CHANGED) as run:
            run.truncate(0)  # forgets what the checkpoint does not know; it adds nothing
            raise error
    assert kept_steps(tmp_path / "r") == {"config.yaml": 3}
    assert (tmp_path / "r" / "versions.json").read_text() == '{"numpy": "0.1"}'


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.log(1, {"x": 1.0}),
        lambda run: run.write_json("cells/a.json", {}),
        lambda run: run.write_audio("x.wav", np.zeros(8), 8000),
        lambda run: run.add_audio(1, "x", np.zeros(8), 8000),
        lambda run: run.keep_settings(),
    ],
    ids=["log", "json", "audio", "tensorboard", "checkpoint"],
)
def test_the_settings_of_a_resume_are_kept_with_the_first_thing_it_writes(tmp_path, write):
    make(tmp_path / "r")
    run = make(tmp_path / "r", **CHANGED)
    assert kept_steps(tmp_path / "r") == {"config.yaml": 3}  # as after a kill
    write(run)
    assert kept_steps(tmp_path / "r") == {"config.yaml": 4, "config.before_resume.yaml": 3}


def test_a_run_keeps_its_settings_with_the_first_thing_that_its_part_writes(tmp_path):
    make(tmp_path / "r")
    run = make(tmp_path / "r", **CHANGED)
    with pytest.raises(ConfigError), make(tmp_path / "r" / "part", part_of=run):
        raise ConfigError("refused")
    assert kept_steps(tmp_path / "r") == {"config.yaml": 3}
    make(tmp_path / "r" / "part", part_of=run).log(0, {"x": 1.0})
    assert kept_steps(tmp_path / "r") == {"config.yaml": 4, "config.before_resume.yaml": 3}


def test_metrics_go_to_json_lines_and_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with make(tmp_path / "r") as run:
        for step in range(4):
            run.log(step, {"loss/a": np.float32(step) / 2, "b": float("nan")})
        run.add_audio(0, "played", 2 * np.sin(np.arange(800)), 8000)
    assert read_metrics(run.metrics_path)[3] == {"step": 3, "loss/a": 1.5, "b": None}
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss/a")] == [0.0, 0.5, 1.0, 1.5]
    assert events.Tags()["audio"] == ["played"]


def test_truncate_forgets_later_steps_in_both_logs(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with make(tmp_path / "r") as run:
        for step in range(5):
            run.log(step, {"x": step})
    time.sleep(1.1)  # TensorBoard tells files of one process apart by their second
    with make(tmp_path / "r", resume=True) as run:
        run.truncate(2)
        run.log(3, {"x": 30.0})
    assert [(line["step"], line["x"]) for line in read_metrics(run.metrics_path)] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("x")] == [(0, 0), (1, 1), (2, 2), (3, 30)]


def test_half_a_line_left_by_a_kill_is_dropped_on_resume(tmp_path):
    run = make(tmp_path / "r")
    run.metrics_path.write_text('{"step": 0, "x": 1.0}\n{"step": 1, "x"')
    with make(tmp_path / "r", resume=True) as run:
        run.log(1, {"x": 2.0})
    assert read_metrics(run.metrics_path) == [{"step": 0, "x": 1.0}, {"step": 1, "x": 2.0}]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\nrubbish\n{"step": 2}\n')
    with pytest.raises(RunError, match="Line 2"):
        read_metrics(path)


def test_audio_is_written_as_wav_and_bad_audio_refused(tmp_path):
    run = make(tmp_path / "r")
    wave = np.linspace(-2, 2, 101)
    path = run.write_audio("audio/x.wav", wave, 16000)
    read, rate = soundfile.read(path)
    assert rate == 16000
    np.testing.assert_allclose(read, np.clip(wave, -1, 1), atol=1e-4)
    with pytest.raises(AudioError, match=r"\(2, 5\)"):
        run.write_audio("y.wav", np.zeros((2, 5)), 16000)
    with pytest.raises(AudioError, match="not finite"):
        run.write_audio("y.wav", np.full(5, np.nan), 16000)
    assert not (run.folder / "y.wav").exists()


def test_names_outside_the_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="outside the run folder"):
        make(tmp_path / "r").write_json("../x.json", {})


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    run = make(tmp_path / "r")
    run.write_json("a.json", {"old": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device.*unchanged"):
        run.write_json("a.json", {"new": 2})
    monkeypatch.undo()
    assert json.loads((run.folder / "a.json").read_text()) == {"old": 1}
    assert not list(run.folder.glob(".*"))


def test_the_advice_fits_what_went_wrong(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name, words in {
        "file/x.json": "A file stands where a folder is needed",
        "folder": "A folder has that name already",
        "x" * 300: "Choose a shorter name",
    }.items():
        with pytest.raises(RunError, match=words) as caught, atomic_path(tmp_path / name) as path:
            path.write_text("")
        assert "space" not in str(caught.value)
    for number, words in {
        errno.ENOSPC: "Free some space",
        errno.EROFS: "only be read",
        errno.EACCES: "permission",
    }.items():
        monkeypatch.setattr(
            files.os, "fsync", lambda descriptor, number=number: (_ for _ in ()).throw(OSError(number, ""))
        )
        with pytest.raises(RunError, match=words), atomic_path(tmp_path / "x") as path:
            path.write_text("")


def test_atomic_path_cleans_up_after_any_error(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "x") as path:
        path.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_atomic_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_path(tmp_path / "atomic") as path:
        path.write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_plain_unfolds_and_refuses():
    @dataclass(frozen=True)
    class Inner:
        size: tuple[int, ...] = (1,)

    assert plain({"a": Inner(), 3: np.arange(2), "f": np.float32(0.5), "p": Path("x")}) == {
        "a": {"size": [1]},
        "3": [0, 1],
        "f": 0.5,
        "p": "x",
    }
    with pytest.raises(ConfigError, match="object"):
        plain(object())


def test_first_interrupt_asks_to_stop_and_the_second_one_stops(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with make(tmp_path / "r") as run:
        os.kill(os.getpid(), signal.SIGINT)
        assert run.stop_requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "stopped"


def test_handler_is_restored_and_the_status_told_after_an_error(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError), make(tmp_path / "r"):
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is before
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "failed"


def test_progress_logs_lines_where_there_is_no_terminal(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "jamgym"), make(tmp_path / "r", quiet=False) as run:
        with run.progress(10, "training", done=4) as bar:
            for _ in range(6):
                bar.advance(loss=0.5)
    assert len(caplog.records) == 1
    assert "training 10/10" in caplog.text and "loss 0.5" in caplog.text


def test_progress_lines_come_at_intervals_and_count_only_new_steps_for_the_rate(caplog, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("jamgym.progress.time.monotonic", lambda: clock[0])
    task = LineTask(100, "x", done=50, seconds=30.0)
    with caplog.at_level(logging.INFO, "jamgym"):
        for _ in range(20):
            clock[0] += 2.0
            task.advance()
    assert len(caplog.records) == 1
    assert "x 65/100, 0.5/s, elapsed 0:00:30, left 0:01:10" in caplog.text


def test_quiet_progress_says_nothing(caplog, capsys):
    with caplog.at_level(logging.INFO, "jamgym"), Bars(quiet=True).task(1, "x") as bar:
        bar.advance()
    assert caplog.text == "" and capsys.readouterr().err == ""


def test_nested_bars_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bars = Bars()
    with bars.task(2, "outer") as outer:
        with bars.task(3, "inner") as inner:
            inner.advance(3, loss=1.25)
        outer.advance()
    text = capsys.readouterr().err
    assert "outer" in text and "inner" in text and "loss 1.25" in text


def test_brackets_in_a_name_are_shown_beside_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    with Bars().task(1, "songs [a]") as bar:
        bar.advance(policy="ppo [/b]")
    text = capsys.readouterr().err
    assert "songs [a]" in text and "policy ppo [/b]" in text


def test_importing_run_and_checkpoint_needs_no_torch():
    code = "import sys, jamgym.run, jamgym.checkpoint, jamgym.config, jamgym.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")
    code = textwrap.dedent(f"""
        import os, signal
        from jamgym.files import atomic_path
        with atomic_path({str(target)!r}) as path:
            path.write_text("new, half wri")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert target.read_text() == "old"
