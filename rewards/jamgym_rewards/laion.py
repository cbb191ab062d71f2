"""CLAP embeddings through the authors' own package `laion-clap`, for figures that must match it exactly.

An optional extra (``pip install 'jamgym[laion-clap]'``, best in an environment of its own: version 1.1.7 pins
numpy below 2). The same weights run through `transformers` without it, see `jamgym_rewards.clap_embedding`.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import CheckpointError, PluginError
from jamgym_rewards.clap_embedding import last_window, unit


class LaionClapEmbedder:
    """Embeds audio and text with `laion_clap.CLAP_Module`; takes the place of a `ClapEmbedder`.

    Args:
        checkpoint: A weight file of LAION-CLAP. The package unpickles it: give it only files that you trust.
        fusion: Whether these are weights with feature fusion.
        audio_model: Name of the audio encoder ("HTSAT-tiny"; "HTSAT-base" for the music weights).

    Raises:
        CheckpointError: There is no such file; nothing is downloaded.
        PluginError: The package `laion-clap` cannot be imported.
    """

    def __init__(self, checkpoint: str | Path, fusion: bool = False, audio_model: str = "HTSAT-tiny") -> None:
        self.checkpoint = Path(checkpoint)
        if not self.checkpoint.is_file():
            raise CheckpointError(
                f"There is no checkpoint at {checkpoint}. LAION-CLAP's weight files are on the hub: lukewys/laion_clap."
            )
        try:
            module: Any = importlib.import_module("laion_clap")
        except Exception as error:
            raise PluginError(
                f"The package laion-clap cannot be imported ({type(error).__name__}: {error}). Install it with "
                "pip install 'jamgym[laion-clap]', or use jamgym_rewards.clap_embedding:ClapEmbedder, which runs the "
                "same weights through transformers."
            ) from error
        self._model = module.CLAP_Module(enable_fusion=fusion, device="cpu", amodel=audio_model)
        self._model.load_ckpt(str(self.checkpoint), verbose=False)
        self._digest = hashlib.sha256(self.checkpoint.read_bytes()).hexdigest()[:8]

    @property
    def version(self) -> str:
        """Package and hash of the weight file."""
        return f"laion-{self._digest}"

    def embed(self, audio: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """Return `(N, D)` embeddings of length 1 of the last 10 s of `(N, S)` audio."""
        return unit(self._model.get_audio_embedding_from_data(x=last_window(audio, sample_rate), use_tensor=False))

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(N, D)` embeddings of length 1 of N texts."""
        return unit(self._model.get_text_embedding(list(texts), use_tensor=False))
