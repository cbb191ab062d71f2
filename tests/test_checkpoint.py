import random

import numpy as np
import pytest
import torch

from jamgym import files
from jamgym.checkpoint import load_state, load_tensors, read_metadata, save_state, save_tensors
from jamgym.errors import CheckpointError
from jamgym.files import RunError


def test_tensors_and_metadata_come_back(tmp_path):
    weight = torch.randn(3, 4)
    tensors = {"w": weight, "tied": weight, "view": weight.t(), "half": torch.ones(2, dtype=torch.bfloat16)}
    save_tensors(tmp_path / "a.safetensors", tensors, {"codec": "spectral-1"})
    found, metadata = load_tensors(tmp_path / "a.safetensors")
    assert metadata == {"codec": "spectral-1"}
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_others_may_read_a_checkpoint_as_any_file(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)})
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_metadata_must_be_strings(tmp_path):
    with pytest.raises(CheckpointError, match="'steps'.*int"):
        save_tensors(tmp_path / "a.safetensors", {}, {"steps": 3})


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\xff" * 100, None])
def test_missing_or_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    for load in (load_tensors, load_state, read_metadata):
        with pytest.raises(CheckpointError, match="a.safetensors"):
            load(path)


def test_a_truncated_file_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    save_state(path, {"x": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(path)


def test_state_comes_back_as_it_was(tmp_path):
    state = {
        "step": 7,
        "big": 2**100,
        "rate": 0.1 + 0.2,
        "inf": float("inf"),
        "name": "ü",
        "none": None,
        "flag": True,
        "list": [1, (2, "x"), {"y": torch.tensor(3)}],
        "ints": {0: "a", 1: {"z": np.float32(0.5)}},
        "mixed": {1: torch.zeros(1), "1": torch.ones(1)},
        "a.b": torch.zeros(2),
        "a": {"b": torch.ones(2)},
        "array": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "scalar_array": np.array(3.5),
        "marker": {"__tensor__": "not a tensor"},
        "empty": {},
    }
    save_state(tmp_path / "s.safetensors", state, {"kind": "finetune"})
    found = load_state(tmp_path / "s.safetensors")
    for name in ("step", "big", "rate", "inf", "name", "none", "flag", "marker", "empty"):
        assert found[name] == state[name] and type(found[name]) is type(state[name])
    assert found["list"][:2] == [1, (2, "x")] and found["list"][2]["y"] == 3
    assert found["ints"] == {0: "a", 1: {"z": 0.5}}
    assert found["mixed"][1] == 0 and found["mixed"]["1"] == 1
    assert torch.equal(found["a.b"], torch.zeros(2)) and torch.equal(found["a"]["b"], torch.ones(2))
    assert found["array"].dtype == np.uint32
    np.testing.assert_array_equal(found["array"], state["array"])
    assert found["scalar_array"].shape == () and found["scalar_array"] == 3.5
    assert read_metadata(tmp_path / "s.safetensors") == {"kind": "finetune"}


def train(model, optimizer, schedule, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        schedule.step()
    return np.random.rand(), random.random()


def make():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


def test_training_goes_on_bit_for_bit(tmp_path):
    np.random.seed(0)
    random.seed(0)
    model, optimizer, schedule = make()
    train(model, optimizer, schedule, 3)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "generator": np.random.default_rng(3).bit_generator.state,
        "python": random.getstate(),
    }
    save_state(tmp_path / "s.safetensors", state)
    drawn = train(model, optimizer, schedule, 4)

    other, other_optimizer, other_schedule = make()
    found = load_state(tmp_path / "s.safetensors")
    other.load_state_dict(found["model"])
    other_optimizer.load_state_dict(found["optimizer"])
    other_schedule.load_state_dict(found["schedule"])
    torch.set_rng_state(found["torch"])
    np.random.set_state(found["numpy"])
    random.setstate(found["python"])
    assert train(other, other_optimizer, other_schedule, 4) == drawn
    assert torch.equal(model.weight, other.weight)
    generator = np.random.default_rng()
    generator.bit_generator.state = found["generator"]
    assert generator.random() == np.random.default_rng(3).random()


def test_expectations_name_everything_that_differs(tmp_path):
    path = tmp_path / "s.safetensors"
    save_state(path, {}, {"kind": "pretrain", "codec": "spectral-1"})
    load_state(path, expect={"kind": "pretrain"})
    with pytest.raises(CheckpointError, match="kind is 'pretrain' but 'finetune'.*corpus is missing .'band' is needed"):
        load_state(path, expect={"kind": "finetune", "codec": "spectral-1", "corpus": "band"})


def test_weights_are_not_a_state(tmp_path):
    save_tensors(tmp_path / "w.safetensors", {"w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="weights, not a training state"):
        load_state(tmp_path / "w.safetensors")


@pytest.mark.parametrize("bad", [object(), {1, 2}, b"bytes", lambda: 0, np.array([None])])
def test_other_things_are_refused_with_their_place(tmp_path, bad):
    with pytest.raises(CheckpointError, match=r"state\.outer\[1\]"):
        save_state(tmp_path / "s.safetensors", {"outer": [1, bad]})
    assert not (tmp_path / "s.safetensors").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "s.safetensors"
    save_state(path, {"step": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        save_state(path, {"step": 2})
    monkeypatch.undo()
    assert load_state(path) == {"step": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["s.safetensors"]
