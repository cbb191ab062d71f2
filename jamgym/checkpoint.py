"""Checkpoints without pickle: tensors in safetensors, the rest as JSON in its metadata.

`save_tensors` and `load_tensors` are for weights. `save_state` and `load_state` are for everything that a
training program needs to go on: nested dicts and lists of tensors, arrays, numbers and strings, such as
the state of an optimizer or of a random generator. Loading either can run no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jamgym.errors import CheckpointError
from jamgym.files import atomic_path

if TYPE_CHECKING:
    import torch

_FORMAT = "jamgym-state-1"
_MARKERS = {"__tensor__", "__array__", "__tuple__", "__items__"}


def save_tensors(
    path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` and string `metadata` to `path` atomically.

    Tensors are copied to the CPU first; tensors that share memory are written one by one.

    Raises:
        CheckpointError: A key or a metadata value is not a string.
        RunError: The file cannot be written; an older one is left as it was.
    """
    from safetensors.torch import save_file

    metadata = dict(metadata or {})
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise CheckpointError(
                f"Metadata {key!r} of {path} is a {type(value).__name__}; keys and values must be str. "
                "Use json.dumps for other things."
            )
    # A clone, because safetensors refuses tensors that share storage (tied weights) or are views.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(plain, str(temporary), metadata=metadata)
        except OSError:
            raise
        except Exception as error:
            if "os error" in str(error).lower() or "I/O" in str(error):
                raise OSError(str(error)) from error
            raise CheckpointError(f"Could not store {path}: {error}") from error


def load_tensors(path: Path | str, device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: The file.
        device: Where to put the tensors.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        CheckpointError: There is no such file, or it is damaged.
    """
    with _open(path, device) as reader:
        return {name: reader.get_tensor(name) for name in reader.keys()}, dict(reader.metadata() or {})


def read_metadata(path: Path | str) -> dict[str, str]:
    """Return the string metadata of a file of `save_tensors` or `save_state` without reading tensors."""
    with _open(path, "cpu") as reader:
        found = dict(reader.metadata() or {})
    return json.loads(found["metadata"]) if found.get("format") == _FORMAT else found


def save_state(path: Path | str, state: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a nested training state to `path` atomically and without pickle.

    Args:
        path: The file.
        state: Nested dicts (keys str, int, float, bool or None), lists and tuples of torch tensors,
            numpy arrays, int, float, bool, str and None.
        metadata: What the state belongs to, such as ``{"kind": "finetune", "codec": "spectral-1"}``;
            `load_state` compares it with what is expected.

    Raises:
        CheckpointError: The state holds something else; the message says where.
        RunError: The file cannot be written; an older one is left as it was.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _encode(dict(state), "state", tensors)
    header = {"format": _FORMAT, "state": json.dumps(tree), "metadata": json.dumps(dict(metadata or {}))}
    save_tensors(path, tensors, header)


def load_state(path: Path | str, expect: Mapping[str, str] | None = None, device: str = "cpu") -> dict[str, Any]:
    """Read what `save_state` wrote.

    Args:
        path: The file.
        expect: Metadata that the file must have; other metadata is ignored.
        device: Where to put the tensors.

    Returns:
        The state, equal to what was saved: tensors, arrays, tuples and int keys included.

    Raises:
        CheckpointError: There is no such file, it is damaged, it is not a training state, or its
            metadata differs from `expect`; the message names what differs.
    """
    tensors, header = load_tensors(path, device)
    if header.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} holds weights, not a training state to resume from (format {header.get('format')!r}, expected "
            f"{_FORMAT!r})."
        )
    check_metadata(path, json.loads(header["metadata"]), expect or {})
    try:
        return _decode(json.loads(header["state"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def check_metadata(path: Path | str, found: Mapping[str, str], expect: Mapping[str, str]) -> None:
    """Raise `CheckpointError` naming every entry of `expect` that `found` lacks or has otherwise."""
    differing = [
        f"{key} is {found[key]!r} but {value!r} is needed"
        if key in found
        else f"{key} is missing ({value!r} is needed)"
        for key, value in expect.items()
        if found.get(key) != value
    ]
    if differing:
        raise CheckpointError(
            f"The checkpoint {path} does not fit: {'; '.join(differing)}. "
            "Use the settings it was made with, or another checkpoint."
        )


def differing_settings(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return in words how the architecture `found` differs from `wanted`, in what both of them say; "" if nowhere.

    >>> differing_settings({"layers": 3, "dim": 32}, {"layers": 2, "dim": 32, "heads": 4})
    'layers 3 where architecture says 2'
    """
    pairs = {key: (found[key], value) for key, value in wanted.items() if key in found}
    return ", ".join(
        f"{key} {there} where architecture says {asked}" for key, (there, asked) in pairs.items() if there != asked
    )


def _open(path: Path | str, device: str) -> Any:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    try:
        return safe_open(str(path), framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or is not a safetensors file: {error}.") from error


def _encode(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    import torch

    if isinstance(value, (torch.Tensor, np.ndarray)):
        # A key with a dot in it may meet the path of a nested one.
        while where in tensors:
            where += "+"
    if isinstance(value, torch.Tensor):
        tensors[where] = value
        return {"__tensor__": where}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject or value.dtype.names:
            raise CheckpointError(f"Cannot store {where}: an array of dtype {value.dtype}.")
        # As bytes: safetensors and torch do not know every numpy dtype.
        tensors[where] = torch.from_numpy(np.frombuffer(value.tobytes(), dtype=np.uint8).copy())
        return {"__array__": where, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return _encode(value.item(), where, tensors)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not _MARKERS.intersection(value):
            return {key: _encode(item, f"{where}.{key}", tensors) for key, item in value.items()}
        bad = [key for key in value if not (key is None or isinstance(key, (bool, int, float, str)))]
        if bad:
            raise CheckpointError(f"Cannot store {where}: its key {bad[0]!r} is a {type(bad[0]).__name__}.")
        # The key's type goes into the name, so that 1 and "1" do not meet.
        return {"__items__": [[k, _encode(v, f"{where}.{k!r}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{where}[{index}]", tensors) for index, item in enumerate(value)]
        return {"__tuple__": items} if isinstance(value, tuple) else items
    raise CheckpointError(
        f"Cannot store {where}: a {type(value).__name__}. A state holds dicts, lists, tensors, arrays, numbers and str."
    )


def _decode(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "__tensor__" in tree:
        return tensors[tree["__tensor__"]]
    if "__array__" in tree:
        raw = tensors[tree["__array__"]].cpu().numpy().tobytes()
        return np.frombuffer(raw, dtype=np.dtype(tree["dtype"])).reshape(tree["shape"]).copy()
    if "__tuple__" in tree:
        return tuple(_decode(item, tensors) for item in tree["__tuple__"])
    if "__items__" in tree:
        return {key: _decode(item, tensors) for key, item in tree["__items__"]}
    return {key: _decode(item, tensors) for key, item in tree.items()}
