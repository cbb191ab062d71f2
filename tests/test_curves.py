import errno
import json

import numpy as np
import pytest
import torch.utils.tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jamgym.curves import Curves
from jamgym.files import RunError
from jamgym.run import Run


class FullDisk:
    """A SummaryWriter whose thread meets a full disk: the named call and every later one raise."""

    failing = "add_scalar"

    def __init__(self, folder, purge_step=None):
        self.failed = False

    def call(self, name):
        self.failed |= name == self.failing
        if self.failed:
            raise OSError(errno.ENOSPC, "No space left on device")

    def add_scalar(self, *args):
        self.call("add_scalar")

    def add_audio(self, *args, **kwargs):
        self.call("add_audio")

    def close(self):
        self.call("close")


@pytest.fixture
def full_disk(monkeypatch):
    def install(failing):
        monkeypatch.setattr(FullDisk, "failing", failing)
        monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", FullDisk)

    return install


def run(folder):
    return Run.create(folder, command="fake", config={}, seed=0, quiet=True)


def status(folder):
    return json.loads((folder / "run.json").read_text())["status"]


def test_scalars_and_audio_are_shown_and_later_ones_forgotten(tmp_path):
    curves = Curves(tmp_path / "tensorboard")
    for step in range(4):
        curves.add_scalars(step, {"a": float(step), "b": -1.0})
    curves.forget_after(1)
    curves.add_scalars(2, {"a": 20.0})
    curves.add_audio(2, "played", np.zeros(800, np.float32), 8000)
    curves.close()
    events = EventAccumulator(str(curves.folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert len(events.Scalars("b")) == 2 and events.Tags()["audio"] == ["played"]


@pytest.mark.parametrize("failing", ["add_scalar", "add_audio"])
def test_a_full_disk_ends_a_run_with_its_own_error(tmp_path, full_disk, failing):
    full_disk(failing)
    with pytest.raises(RunError, match=r"Could not write .*tensorboard: No space left on device\. Free some space"):
        with run(tmp_path / "r") as made:
            made.log(0, {"a": 1.0})
            made.add_audio(0, "x", np.zeros(8), 8000)
    assert status(tmp_path / "r") == "failed"


def test_curves_that_cannot_be_closed_are_told_after_the_status_is_written(tmp_path, full_disk):
    full_disk("close")
    with pytest.raises(RunError, match="No space left"), run(tmp_path / "r") as made:
        made.log(0, {"a": 1.0})
    assert status(tmp_path / "r") == "failed"


def test_the_first_error_is_shown_and_the_status_written_where_closing_fails_too(tmp_path, full_disk):
    full_disk("close")
    with pytest.raises(ZeroDivisionError), run(tmp_path / "r") as made:
        made.log(0, {"a": 1.0})
        raise ZeroDivisionError
    assert status(tmp_path / "r") == "failed"


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(RunError, match="tensorboard: File exists. A file stands where a folder is needed"):
        Curves(tmp_path / "tensorboard").add_scalars(0, {"a": 1.0})
