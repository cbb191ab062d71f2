"""CLAP embeddings (Wu et al., arXiv 2211.06687) through `transformers`, with weights that the user brings.

Audio is resampled to 48 kHz and cut to its last 10 s here, because the feature extractor would otherwise
cut at random; what is shorter is repeated, as CLAP was trained. Models with feature fusion get their
"longer than 10 s" flag switched off, which the extractor would set for a random clip of each batch. So an
embedding depends on its own clip alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jamgym.errors import CheckpointError, ConfigError
from jamgym_rewards.learned import clean_audio

SAMPLE_RATE = 48_000
WINDOW_SECONDS = 10.0
#: The weights that the CLAP papers and most evaluations use.
USUAL = "laion/clap-htsat-unfused"
_BATCH = 8


class AudioEmbedder(Protocol):
    """Anything that turns audio into embeddings of length 1."""

    @property
    def version(self) -> str:
        """Changes whenever the same audio may get another embedding."""
        ...

    def embed(self, audio: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """Return `(N, D)` embeddings of length 1 of `(N, S)` audio."""
        ...

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(N, D)` embeddings of length 1 of N texts."""
        ...


def last_window(audio: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """Return finite `(N, S)` audio at 48 kHz: the last 10 s at most."""
    keep = round(WINDOW_SECONDS * sample_rate)
    audio = clean_audio(np.asarray(audio)[:, -keep:], sample_rate, SAMPLE_RATE)
    return audio[:, -round(WINDOW_SECONDS * SAMPLE_RATE) :]


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return `(N, D)` vectors scaled to length 1; vectors that are zero or not finite become zero."""
    vectors = np.nan_to_num(np.asarray(vectors, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12)).astype(np.float32)


def pooled(output: Any) -> Tensor:
    """Return the embeddings `(N, D)`: transformers 5 wraps them in an object, transformers 4 does not."""
    return output if isinstance(output, Tensor) else output.pooler_output


class ClapEmbedder:
    """Embeds audio and text with a `transformers.ClapModel`.

    Args:
        checkpoint: Folder of `save_pretrained`, or a name on the Hugging Face hub.
        download: Whether a hub name may be downloaded; without it only the local cache is looked at.

    Raises:
        ConfigError: No checkpoint is given.
        CheckpointError: It is not here (the message says how to get it), or cannot be loaded.
    """

    def __init__(self, checkpoint: str | Path | None, download: bool = False) -> None:
        if checkpoint is None:
            raise ConfigError(
                f"CLAP needs the argument checkpoint: a folder, or a hub name such as {USUAL!r} with download=True."
            )
        self.checkpoint = str(checkpoint)
        self.download = download
        self._model = self._pretrained("ClapModel").eval().requires_grad_(False)
        self._extractor = self._pretrained("ClapFeatureExtractor")
        self._tokenizer: Any = None
        self._digest = ""

    @property
    def version(self) -> str:
        """Hash of the weights."""
        if not self._digest:
            digest = hashlib.sha256()
            for name, tensor in self._model.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
            self._digest = digest.hexdigest()[:8]
        return self._digest

    def embed(self, audio: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """Return `(N, D)` embeddings of length 1 of the last 10 s of `(N, S)` audio, S at least 1."""
        audio = last_window(audio, sample_rate)
        found = []
        with torch.no_grad():
            for first in range(0, len(audio), _BATCH):
                clips = list(audio[first : first + _BATCH])
                inputs = self._extractor(clips, sampling_rate=SAMPLE_RATE, padding="repeatpad", return_tensors="pt")
                longer = torch.zeros_like(inputs["is_longer"])
                output = self._model.get_audio_features(input_features=inputs["input_features"], is_longer=longer)
                found.append(pooled(output).float().numpy())
        return unit(np.concatenate(found)) if found else np.zeros((0, self._model.config.projection_dim), np.float32)

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(N, D)` embeddings of length 1 of N texts."""
        if self._tokenizer is None:
            self._tokenizer = self._pretrained("AutoTokenizer")
        tokens = self._tokenizer(list(texts), padding=True, return_tensors="pt")
        with torch.no_grad():
            output = self._model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
        return unit(pooled(output).float().numpy())

    def _pretrained(self, kind: str) -> Any:
        import transformers

        path = Path(self.checkpoint)
        looks_local = path.is_absolute() or self.checkpoint.startswith(".") or self.checkpoint.count("/") != 1
        if looks_local and not path.is_dir():
            raise CheckpointError(f"There is no folder {self.checkpoint}. {self._help()}")
        try:
            return getattr(transformers, kind).from_pretrained(
                self.checkpoint, local_files_only=path.is_dir() or not self.download
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{kind} of {self.checkpoint!r} cannot be loaded: {reason} {self._help()}") from error

    def _help(self) -> str:
        return (
            f"To get CLAP weights, run `hf download {USUAL}` once where there is a network and give that name, or pass "
            "download=True, or copy the folder and give its path."
        )
