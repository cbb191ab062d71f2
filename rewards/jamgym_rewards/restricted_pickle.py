"""Reads the tensors of a foreign torch checkpoint without running any code that is in it.

jamgym itself stores no pickle, but public weights are often Lightning checkpoints: a zip of raw tensors
and of a pickle that names classes, enums of the authors' package among them. This reader knows tensors,
storages and plain containers. A class of a package it does not know becomes an inert placeholder, which
does nothing when it is built, called or filled. Whatever else the pickle names (functions of Python's own
library, of torch or of numpy's modules that do more than hold numbers) is refused before it is touched.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jamgym.errors import CheckpointError

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_PLAIN = (str, int, float, bool, bytes, type(None))
_KNOWN_PACKAGES = frozenset(sys.stdlib_module_names) | {"__builtin__", "copy_reg", "torch", "jamgym", "jamgym_rewards"}
#: Classes of those packages that only hold values.
_VALUE_CLASSES = {("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("pathlib", "PurePosixPath")}


class _Placeholder:
    """Stands for an object whose class is not known; holds nothing and does nothing."""

    named = "?"

    def __init__(self, *values: Any) -> None:
        if not all(isinstance(value, _PLAIN) for value in values):
            raise pickle.UnpicklingError(f"{self.named} is called with more than plain values")

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Drop an item."""

    def extend(self, values: Any) -> None:
        """Drop items."""


def _attribute(owner: Any, name: Any) -> _Placeholder:
    """Stand in for `getattr`, through which some versions of Python pickle the members of an enum."""
    if not (isinstance(owner, type) and issubclass(owner, _Placeholder)):
        raise pickle.UnpicklingError("getattr on something that is not an unknown class")
    return owner(name)


class _Storage:
    """A run of numbers of one type in the file."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """Return a view of `storage` that lies inside it."""
    size, stride = tuple(size), tuple(stride)
    whole = all(isinstance(value, int) and value >= 0 for value in (offset, *size, *stride))
    if not isinstance(storage, _Storage) or not whole or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor is described wrongly")
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage.values):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    return torch.as_strided(storage.values, size, stride, offset)


def _parameter(data: Any, *rest: Any) -> Any:
    """Return the tensor that a parameter wraps."""
    return data


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("builtins", "getattr"): _attribute,
    ("__builtin__", "getattr"): _attribute,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    **{("torch", str(dtype).split(".")[1]): dtype for dtype in _STORAGES.values()},
}


class _Unpickler(pickle.Unpickler):
    """A pickle machine in which no name means anything but what this module says."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, _Storage] = {}
        self._placeholders: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is not None:
            return found
        if module.split(".")[0] in _KNOWN_PACKAGES and (module, name) not in _VALUE_CLASSES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither a tensor nor a plain container")
        full = f"{module}.{name}"
        return self._placeholders.setdefault(full, type("Placeholder", (_Placeholder,), {"named": full}))

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise pickle.UnpicklingError("it refers to something that is not a storage of numbers")
        _, dtype, key, _, count = pid
        key = str(key)
        if key not in self._storages:
            raw = bytearray(self._archive.read(f"{self._folder}/data/{key}"))
            if len(raw) != count * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} has {len(raw)} bytes instead of {count} numbers")
            values = torch.frombuffer(raw, dtype=dtype) if raw else torch.zeros(0, dtype=dtype)
            self._storages[key] = _Storage(values)
        storage = self._storages[key]
        if storage.values.dtype != dtype:
            raise pickle.UnpicklingError(f"storage {key} is read as two types")
        return storage


def read_torch_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read what ``torch.save`` wrote, a Lightning checkpoint for instance, without running code.

    Args:
        path: A file of ``torch.save`` in its zip format (torch 1.6 or newer).

    Returns:
        The stored dict, with tensors on the CPU and inert placeholders for unknown classes.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it names something that is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{path} is compressed; torch.save writes plain zips.")
            roots = [name[: -len("/data.pkl")] for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise CheckpointError(f"{path} is a zip, but not one of torch.save: it has no data.pkl.")
            order = f"{roots[0]}/byteorder"
            if order in archive.namelist() and archive.read(order).strip() != sys.byteorder.encode():
                raise CheckpointError(f"{path} was written on a machine of another byte order; save it again here.")
            found = _Unpickler(archive, roots[0]).load()
    except CheckpointError:
        raise
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint in torch's zip format; safetensors files end in .safetensors."
        ) from error
    except Exception as error:  # a hostile pickle may raise anything
        raise CheckpointError(
            f"{path} is refused: {error}. Only tensors, plain containers and classes of unknown packages (which are "
            "replaced by nothing) may be in it. If you trust the file, load it with its authors' code and store "
            "its state_dict as safetensors."
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; a checkpoint is a dict.")
    return found
