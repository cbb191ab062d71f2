"""Codec `spectral`: 16 kHz, 25 frames per second, 4 codebooks of 1024; causal in both directions.

The network is `jamgym.codecs.spectral_network`; the shipped weights were trained by
``jamgym train-codec --config configs/train-codec/spectral.yaml`` (see ``assets/spectral.json``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jamgym.codec import Audio, Codes
from jamgym.codecs.spectral_network import SpectralConfig, SpectralNetwork
from jamgym.errors import AudioError, CheckpointError, ConfigError


def _reset(state: list[Tensor] | None, rows: NDArray[np.bool_] | None) -> list[Tensor] | None:
    if state is None or rows is None:
        return None
    keep = torch.from_numpy(~np.asarray(rows, dtype=bool)).to(state[0].device)
    # where, not a product: a NaN of the old stream must not survive as 0 * NaN.
    return [torch.where(keep.reshape(-1, *[1] * (t.dim() - 1)), t, torch.zeros_like(t)) for t in state]


class _Streams:
    """Streaming state of N rows; a push may move some of them on and leave the others where they are."""

    def __init__(self, codec: SpectralCodec, batch: int) -> None:
        self._codec, self._batch = codec, batch
        self._state: list[Tensor] | None = None

    def reset(self, rows: NDArray[np.bool_] | None = None) -> None:
        self._state = _reset(self._state, rows)

    def _advance(self, network: Any, block: Tensor, rows: NDArray[np.int64] | None) -> Tensor:
        if rows is None:
            result, self._state = network(block, self._state)
            return result
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(block.device)
        part = None if self._state is None else [tensor[index] for tensor in self._state]
        result, moved = network(block, part)
        if self._state is None:
            # A fresh stream is all zeros, as `_reset` has it.
            self._state = [tensor.new_zeros(self._batch, *tensor.shape[1:]) for tensor in moved]
        self._state = [old.index_copy(0, index, new) for old, new in zip(self._state, moved, strict=True)]
        return result


class _StreamingEncoder(_Streams):
    @torch.inference_mode()
    def push(self, audio: Audio, rows: NDArray[np.int64] | None = None) -> Codes:
        network = self._codec.network
        tensor = self._codec.check_audio(audio, self._batch if rows is None else len(rows))
        if tensor.shape[1] == 0:
            return np.zeros((len(tensor), 0, self._codec.num_codebooks), np.int16)
        latents = self._advance(network.encoder, tensor, rows)
        return network.quantizer.encode(latents).cpu().numpy().astype(np.int16)


class _StreamingDecoder(_Streams):
    @torch.inference_mode()
    def push(self, codes: Codes, rows: NDArray[np.int64] | None = None) -> Audio:
        network = self._codec.network
        tensor = self._codec.check_codes(codes, self._batch if rows is None else len(rows))
        if tensor.shape[1] == 0:
            return np.zeros((len(tensor), 0), np.float32)
        return self._advance(network.decoder, network.quantizer.decode(tensor), rows).cpu().numpy()


class SpectralCodec:
    """The codec that jamgym ships.

    Args:
        weights: A file written by `save`; None loads the shipped weights.
        device: Where the network computes, such as "cuda". Audio and codes stay arrays in memory, and a few codes in
            ten thousand may differ between devices.

    Raises:
        CheckpointError: The file is damaged or holds another architecture.
        ConfigError: There is no such device.

    Example:
        >>> import numpy as np
        >>> codec = SpectralCodec()
        >>> codec.encode(np.zeros((1, 1280), np.float32)).shape
        (1, 2, 4)
    """

    name = "spectral"
    lookahead_samples = 0
    decoder_lookahead_samples = 0

    def __init__(self, weights: str | Path | None = None, device: str = "cpu") -> None:
        from jamgym.checkpoint import load_tensors

        if weights is None:
            with as_file(files("jamgym") / "assets" / "spectral.safetensors") as path:
                tensors, metadata = load_tensors(path)
        else:
            tensors, metadata = load_tensors(Path(weights))
        source = weights or "The shipped file"
        if metadata.get("kind") != "codec/spectral":
            raise CheckpointError(
                f"{source} holds {metadata.get('kind', 'no kind')!r}, not 'codec/spectral'. "
                "Give a codec.safetensors written by `jamgym train-codec`."
            )
        known = {field.name for field in fields(SpectralConfig)}
        try:
            settings = json.loads(metadata["architecture"])
            network = SpectralNetwork(SpectralConfig(**{key: settings[key] for key in settings if key in known}))
            found = network.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{source} does not fit codec 'spectral': {type(error).__name__}: {error}") from error
        missing = [key for key in found.missing_keys if not key.startswith("quantizer.cluster")]
        unexpected = list(found.unexpected_keys)
        if missing or unexpected:
            raise CheckpointError(
                f"{source} does not fit codec 'spectral': missing {missing[:3]}, unexpected {unexpected[:3]}."
            )
        self._adopt(network, device)

    @classmethod
    def from_network(cls, network: SpectralNetwork) -> SpectralCodec:
        """Wrap a network that is in memory, rounded to the half precision it would be saved in."""
        codec = cls.__new__(cls)
        copy = SpectralNetwork(network.config)
        copy.load_state_dict({k: v.half().float() for k, v in network.state_dict().items()})
        codec._adopt(copy)
        return codec

    def _adopt(self, network: SpectralNetwork, device: str = "cpu") -> None:
        try:
            self.device = torch.device(device)
            self.network = network.eval().requires_grad_(False).to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"Codec 'spectral' cannot use device {device!r}: {str(error).splitlines()[0]} Valid are 'cpu' and, "
                "with a GPU that torch finds, 'cuda'."
            ) from error
        config = network.config
        self.sample_rate, self.hop_samples = config.sample_rate, config.hop
        self.num_codebooks, self.cardinality = config.num_codebooks, config.cardinality
        digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
        for key, value in sorted(self._weights().items()):
            if not key.startswith("decoder."):  # the version is that of the codes, not of their sound
                digest.update(key.encode() + value.numpy().tobytes())
        self.version = digest.hexdigest()[:12]
        # Long enough for every window and convolution to have seen nothing but silence.
        self.silence_codes: Codes = self.encode(np.zeros((1, 48 * config.hop), np.float32))[0, -1]

    def _weights(self) -> dict[str, Tensor]:
        state = self.network.state_dict()
        return {key: value.half().cpu().contiguous() for key, value in state.items() if ".cluster_" not in f".{key}"}

    def save(self, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the weights in half precision, with `metadata` as JSON beside the architecture."""
        from jamgym.checkpoint import save_tensors

        texts = {"kind": "codec/spectral", "architecture": json.dumps(asdict(self.network.config))}
        texts["version"] = self.version
        texts["training"] = json.dumps(metadata or {}, default=str)
        save_tensors(path, self._weights(), texts)

    @property
    def latent_dim(self) -> int:
        """Dimensions of `codebook_vectors`."""
        return self.network.config.latent_dim

    @property
    def codebook_vectors(self) -> NDArray[np.float32]:
        """The entries `(Q, V, D)`; a frame's latent is the sum of its Q entries."""
        return self.network.quantizer.codebooks.cpu().numpy()

    def check_audio(self, audio: Audio, batch: int | None = None) -> Tensor:
        """Return `audio` `(N, S)` as a tensor, or raise `AudioError`."""
        array = np.asarray(audio, dtype=np.float32)
        if array.ndim != 2 or array.shape[1] % self.hop_samples or (batch is not None and len(array) != batch):
            raise AudioError(
                f"Audio has shape {array.shape}; valid is ({'N' if batch is None else batch}, S) with S a multiple "
                f"of {self.hop_samples} samples. Pad or cut it to whole frames."
            )
        if not np.isfinite(array).all():
            raise AudioError("Audio holds NaN or infinite samples; replace them before encoding.")
        return torch.tensor(array, device=self.device)

    def check_codes(self, codes: Codes, batch: int | None = None) -> Tensor:
        """Return `codes` `(N, T, Q)` as an int64 tensor, or raise `AudioError`."""
        array = np.asarray(codes)
        if array.dtype.kind not in "iu":
            raise AudioError(f"Codes have dtype {array.dtype}; valid are whole numbers such as int16.")
        if array.ndim != 3 or array.shape[2] != self.num_codebooks or (batch is not None and len(array) != batch):
            raise AudioError(
                f"Codes have shape {array.shape}; valid is "
                f"({'N' if batch is None else batch}, T, {self.num_codebooks})."
            )
        if array.size and (array.min() < 0 or array.max() >= self.cardinality):
            raise AudioError(f"Codes run from {array.min()} to {array.max()}; valid is 0 to {self.cardinality - 1}.")
        return torch.from_numpy(array.astype(np.int64)).to(self.device)

    @torch.inference_mode()
    def encode(self, audio: Audio) -> Codes:
        """Encode `(N, S)` into `(N, S / hop_samples, Q)`."""
        tensor = self.check_audio(audio)
        if tensor.shape[1] == 0:
            return np.zeros((len(tensor), 0, self.num_codebooks), np.int16)
        latents, _ = self.network.encoder(tensor)
        return self.network.quantizer.encode(latents).cpu().numpy().astype(np.int16)

    @torch.inference_mode()
    def decode(self, codes: Codes) -> Audio:
        """Decode `(N, T, Q)` into `(N, T * hop_samples)`."""
        tensor = self.check_codes(codes)
        if tensor.shape[1] == 0:
            return np.zeros((len(tensor), 0), np.float32)
        audio, _ = self.network.decoder(self.network.quantizer.decode(tensor))
        return audio.cpu().numpy()

    def encoder(self, batch: int) -> _StreamingEncoder:
        """Return a streaming encoder for `batch` streams."""
        return _StreamingEncoder(self, batch)

    def decoder(self, batch: int) -> _StreamingDecoder:
        """Return a streaming decoder for `batch` streams."""
        return _StreamingDecoder(self, batch)
