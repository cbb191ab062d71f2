import enum
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import pytest
import torch

from jamgym.errors import CheckpointError
from jamgym_rewards.restricted_pickle import read_torch_checkpoint


@pytest.fixture
def foreign(monkeypatch):
    """A package that exists while the file is written and never when it is read."""
    name = "some_authors_package.constants"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name.split(".")[0], types.ModuleType(name.split(".")[0]))
    monkeypatch.setitem(sys.modules, name, module)
    module.Kind = enum.Enum("Kind", {"BOTH": "both", "ONE": 1}, module=name)
    module.Attributes = type("Attributes", (dict,), {"__module__": name})

    class ByName:
        def __reduce__(self):
            return getattr, (module.Kind, "BOTH")

    module.by_name = ByName()
    return module


def forget():
    for name in [name for name in sys.modules if name.startswith("some_authors_package")]:
        del sys.modules[name]


class Runs:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def save(path, protocol=2, **content):
    torch.save(content, path, pickle_protocol=protocol)
    return path


def test_tensors_come_back_as_they_were(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(
        whole=base,
        turned=base.t()[1:],
        half=base.half(),
        brain=base.bfloat16(),
        count=torch.tensor(7),
        empty=torch.zeros(0, 3),
        weight=torch.nn.Parameter(base * 2),
        flags=base > 3,
    )
    found = read_torch_checkpoint(save(tmp_path / "a.ckpt", state_dict=state, epoch=3, name=None, lr=[0.1, (1, 2)]))
    assert found["epoch"] == 3 and found["lr"] == [0.1, (1, 2)]
    for name, tensor in state.items():
        assert torch.equal(found["state_dict"][name], tensor.detach()), name
        assert found["state_dict"][name].dtype == tensor.dtype


def test_a_module_and_an_optimizer(tmp_path):
    layer = torch.nn.BatchNorm1d(3)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    path = save(tmp_path / "a.ckpt", state_dict=layer.state_dict(), optimizer_states=[optimizer.state_dict()])
    assert read_torch_checkpoint(path)["state_dict"].keys() == layer.state_dict().keys()


@pytest.mark.parametrize("protocol", [2, 4])
def test_foreign_classes_become_placeholders(tmp_path, foreign, protocol):
    settings = {"a": foreign.Kind.BOTH, "b": foreign.Kind.ONE, "c": foreign.by_name, "d": foreign.Attributes(x=1)}
    path = save(tmp_path / "a.ckpt", protocol, state_dict={"w": torch.ones(2)}, hyper_parameters=settings)
    forget()
    found = read_torch_checkpoint(path)
    assert torch.equal(found["state_dict"]["w"], torch.ones(2))
    for value in found["hyper_parameters"].values():
        assert type(value).__name__ == "Placeholder" and not isinstance(value, (enum.Enum, dict, str))
    assert "some_authors_package" not in sys.modules


@pytest.mark.parametrize("protocol", [2, 4])  # which write names of Python's own functions differently
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {marker}",), "system"),
        (eval, ("open('{marker}', 'w')",), "eval"),
        (open, ("{marker}", "w"), "open"),
        (pickle.loads, (b"",), "loads"),
        (torch.load, ("{marker}",), "torch"),
        (__import__, ("os",), "__import__"),
        (getattr, (os, "system"), "is refused"),
        (getattr, (OrderedDict, "fromkeys"), "getattr"),
    ],
)
def test_code_is_refused_and_does_not_run(tmp_path, protocol, function, arguments, named):
    marker = tmp_path / "ran"
    arguments = tuple(a.format(marker=marker) if isinstance(a, str) else a for a in arguments)
    if os in arguments:  # modules cannot be pickled; the file says how to reach one
        arguments = (Runs(__import__, "os"), "system")
    settings = Runs(function, *arguments)
    path = save(tmp_path / "evil.ckpt", protocol, state_dict={"w": torch.ones(2)}, hyper_parameters=settings)
    with pytest.raises(CheckpointError, match=named):
        read_torch_checkpoint(path)
    assert not marker.exists()


def test_a_foreign_class_takes_plain_values_only(tmp_path, foreign):
    path = save(tmp_path / "a.ckpt", x=Runs(foreign.Kind, "both"), y=Runs(foreign.Attributes, [foreign.Kind.ONE]))
    forget()
    with pytest.raises(CheckpointError, match=r"some_authors_package.*plain values"):
        read_torch_checkpoint(path)


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (-1, (2,), (1,)), (0, (2, 2), (3, 1)), (0, (2,), (9,))],
)
def test_tensors_stay_inside_their_storage(tmp_path, offset, size, stride):
    four = torch.arange(4.0)
    call = Runs(torch._utils._rebuild_tensor_v2, four.storage(), offset, size, stride, False, OrderedDict())
    with pytest.raises(CheckpointError, match="beyond its storage|described wrongly"):
        read_torch_checkpoint(save(tmp_path / "a.ckpt", w=call))
    inside = Runs(torch._utils._rebuild_tensor_v2, four.storage(), 1, (2,), (2,), False, OrderedDict())
    found = read_torch_checkpoint(save(tmp_path / "b.ckpt", w=inside))["w"]
    assert found.tolist() == [1.0, 3.0]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_torch_checkpoint(tmp_path / "missing.ckpt")
    text = tmp_path / "text.ckpt"
    text.write_text("hello")
    with pytest.raises(CheckpointError, match="damaged"):
        read_torch_checkpoint(text)
    torch.save({"w": torch.ones(2)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="zip format"):
        read_torch_checkpoint(tmp_path / "old.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_torch_checkpoint(tmp_path / "list.ckpt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a/readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"no data\.pkl"):
        read_torch_checkpoint(tmp_path / "other.zip")
    whole = save(tmp_path / "whole.ckpt", w=torch.ones(1000)).read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        read_torch_checkpoint(tmp_path / "cut.ckpt")


def test_compressed_zips_are_refused(tmp_path):
    path = save(tmp_path / "a.ckpt", w=torch.zeros(1000))
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch_checkpoint(tmp_path / "b.ckpt")
