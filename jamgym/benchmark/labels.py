"""What the policies of an evaluation are called in tables and files, and which of them a corpus is too small for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jamgym.episode import EpisodeSource
from jamgym.errors import ConfigError, CorpusError
from jamgym.files import digest
from jamgym.registry import policies
from jamgym.specs import Spec, spec_name, split_spec

_WEIGHTS = ".safetensors"


def labelled_specs(specs: Iterable[str | Mapping[str, Any]]) -> dict[str, Spec]:
    """Return label to spec, without the label.

    Raises:
        ConfigError: Two policies have one label.
        UnknownNameError: A policy is not known.
    """
    found: dict[str, Spec] = {}
    for spec in specs:
        label, rest = _labelled(spec)
        if label in found:
            raise ConfigError(
                f"Two policies are labelled {label!r}. Give each one its own: {{name: decoder, label: OTHER, ...}}."
            )
        found[label] = rest
    return found


def with_checkpoints(specs: Mapping[str, Spec], paths: Iterable[str]) -> dict[str, Spec]:
    """Return label to spec of `specs` and of the decoders whose checkpoints are at `paths`, labelled by their folders.

    Raises:
        ConfigError: Two have one label.
    """
    found = dict(specs)
    for text in paths:
        label = _label_of(text)
        if label in found:
            raise ConfigError(
                f"The checkpoint {text!r} is labelled {label!r} after its folder, and so is another policy. Put it "
                f"into policies with a label of its own: {{name: decoder, label: OTHER, checkpoint: {text}}}. What is "
                "in checkpoints is always a decoder: the path of a file or the name of a shipped one, never a policy."
            )
        found[label] = {"name": "decoder", "checkpoint": text}
    return found


def without_other_songs(specs: Mapping[str, Spec], source: EpisodeSource, optional: bool) -> dict[str, str]:
    """Return the labels of policies that need another song's stem where there is none, to sentences that say so.

    Args:
        specs: Label to spec.
        source: Where the other songs would come from; loads songs until two have a usable stem.
        optional: Whether such a policy may be left out, since nobody asked for it.

    Raises:
        CorpusError: There is such a policy, and it is not optional.
    """
    labels = [label for label, spec in specs.items() if spec_name(spec) == "random_stem"]
    usable = (song_id for song_id in source.song_ids if labels and source.targets(song_id))
    only = next(usable, None)
    if only is None or next(usable, None) is not None:
        return {}
    found = f"no stem in a song other than {only!r} in split {source.split!r} of corpus {source.corpus.name!r}"
    if not optional:
        raise CorpusError(f"Policy 'random_stem' found {found}. Add songs, or leave the policy out.")
    return {label: f"{label} needs another song's stem, and there is {found}; it is left out." for label in labels}


def safe_name(name: str) -> str:
    """Return `name` as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "_"


def file_stem(label: str) -> str:
    """Return the part of file names that stands for the policy `label` and for no other.

    >>> file_stem("ppo"), file_stem("ppo 2")
    ('ppo', 'ppo_2-71dbcd')
    """
    name = safe_name(label)
    # Two labels may become one file name; the hash keeps them apart.
    return name if name == label else f"{name}-{digest(label)[:6]}"


def _labelled(spec: str | Mapping[str, Any]) -> tuple[str, Spec]:
    """Return the label and the spec without it. A path of a checkpoint stands for a decoder."""
    if isinstance(spec, str):
        if spec.endswith(_WEIGHTS):
            return _label_of(spec), {"name": "decoder", "checkpoint": spec}
        return split_spec(policies, spec)[0], spec
    rest = {key: value for key, value in spec.items() if key != "label"}
    name, _ = split_spec(policies, rest)
    label = spec.get("label", name)
    if not isinstance(label, str) or not label:
        raise ConfigError(f"The label of policy {name!r} is {label!r}; it must be a word.")
    return label, rest


def _label_of(checkpoint: str) -> str:
    path = Path(checkpoint)
    return path.parent.name or path.stem
