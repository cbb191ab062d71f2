"""Decoder checkpoints: weights in safetensors with the architecture and the codec they belong to."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from jamgym.checkpoint import load_tensors, save_tensors
from jamgym.codec import Codec
from jamgym.errors import CheckpointError, unknown_name_message
from jamgym.files import is_bare_name
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig
from jamgym_agents.eight_bit import from_eight_bits, to_eight_bits

#: Decoders that come with the package, by the names that stand for them wherever a setting takes a checkpoint:
#: pretrained, and fine-tuned from there with PPO. "./ppo" and a `Path` are files of that name.
SHIPPED = {"mle": "decoder.safetensors", "ppo": "ppo.safetensors"}
_KIND = "decoder"


def save_decoder(
    path: Path, decoder: AccompanimentDecoder, codec_version: str, training: dict[str, Any], eight_bit: bool = False
) -> None:
    """Write `decoder` in half precision, or with `eight_bit` matrices; `training` is kept as JSON for people."""
    state = decoder.state_dict()
    save_tensors(
        path,
        to_eight_bits(state) if eight_bit else {key: value.half() for key, value in state.items()},
        {
            "kind": _KIND,
            "codec": codec_version,
            "architecture": json.dumps(asdict(decoder.config)),
            "training": json.dumps(training, default=str),
        },
    )


def load_decoder(path: str | Path | None, codec: Codec) -> AccompanimentDecoder:
    """Return the decoder stored at `path`; in eval mode, float32.

    Args:
        path: A file, or, as a string, a name in `SHIPPED`; None stands for "mle".
        codec: Whose codes it has to play.

    Raises:
        CheckpointError: There is no such file or name; or the file is damaged, is not a decoder, or belongs to another
            codec.
    """
    name = "mle" if path is None else path
    label = str(name)
    if isinstance(name, str) and name in SHIPPED:
        label = f"the shipped decoder {name!r}"
        with as_file(files("jamgym_agents") / "assets" / SHIPPED[name]) as shipped:
            tensors, metadata = load_tensors(shipped)
    elif is_bare_name(name) and not Path(name).exists():
        raise CheckpointError(
            f"{unknown_name_message('decoder', label, SHIPPED)} Or give the path of a decoder.safetensors."
        )
    else:
        tensors, metadata = load_tensors(Path(name))
    if metadata.get("kind") != _KIND:
        raise CheckpointError(
            f"{label} holds {metadata.get('kind', 'no kind')!r}, not a decoder. "
            "Give a decoder.safetensors written by `jamgym pretrain` or `jamgym finetune`."
        )
    if metadata.get("codec") != codec.version:
        raise CheckpointError(
            f"{label} was trained on codes of codec version {metadata.get('codec')!r}, but codec {codec.name!r} here "
            f"is version {codec.version!r}: the same numbers would mean other sounds. Use the codec it was trained "
            "with, or pretrain on this one with `jamgym pretrain`."
        )
    settings = json.loads(metadata["architecture"])
    known = {field.name for field in fields(DecoderConfig)}
    if unknown := set(settings) - known:
        raise CheckpointError(f"{label} has unknown architecture settings {sorted(unknown)}; known: {sorted(known)}.")
    sizes = (settings.get("num_codebooks"), settings.get("cardinality"))
    if sizes != (codec.num_codebooks, codec.cardinality):
        raise CheckpointError(
            f"{label} plays {sizes[0]} codebooks of {sizes[1]} entries, but codec {codec.name!r} has "
            f"{codec.num_codebooks} of {codec.cardinality}. Use the codec it was trained with."
        )
    decoder = AccompanimentDecoder(DecoderConfig(**settings))
    try:
        decoder.load_state_dict(from_eight_bits(tensors))
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{label} does not fit its own architecture: {error}") from error
    return decoder.eval()


def new_decoder(config: DecoderConfig, codec: Codec) -> AccompanimentDecoder:
    """Return an untrained decoder for `codec`, whose sizes replace those in `config`.

    The decoder sees codes as the codec's own latent vectors; a codec without them gets fixed random ones.
    """
    vectors = getattr(codec, "codebook_vectors", None)
    if vectors is None:
        shape = (codec.num_codebooks, codec.cardinality, config.latent_dim)
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    else:
        tensor = torch.as_tensor(vectors).clone()
    sizes = {"num_codebooks": tensor.shape[0], "cardinality": tensor.shape[1], "latent_dim": tensor.shape[2]}
    return AccompanimentDecoder(DecoderConfig(**{**asdict(config), **sizes}), tensor)
