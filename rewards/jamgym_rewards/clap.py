"""The reward `clap`: how similar two sounds are, or a sound and a text, to CLAP (arXiv 2211.06687).

Convention: cosine of two CLAP embeddings, -1 to 1. This is *similarity, not coherence*: a copy of what is
heard gets 1, and a good bass line under a flute less than a second flute. Use it to describe style or to
follow a text, not to judge playing together; for that see `clap_probe`, `coherence` or `cocola`. Needs:
nothing beyond audio, and weights. Windows: 10 s every 5 s, at least 5 s; causal.

What is compared, with the heard music or with `text`, is what was `played`, or the `mix` of both. The mix
of anything with a silent player equals what was heard, so without its gates this reward would pay most for
silence; a closed gate of `jamgym_rewards.gating` gives `gating.FLOOR`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import ConfigError, unknown_name_message
from jamgym.reward import Windows
from jamgym_rewards.clap_embedding import AudioEmbedder, ClapEmbedder
from jamgym_rewards.gating import FLOOR, GateSettings, lowered, openness
from jamgym_rewards.learned import both_sides

Side = Literal["played", "mix"]
SIDES: tuple[Side, ...] = ("played", "mix")
#: Bumped whenever the same weights may give another score.
SCORING_VERSION = "1"


class ClapReward:
    """CLAP similarity of what was played, or of the mix, with what was heard or with a text.

    Args:
        checkpoint: Folder or hub name of the weights (see `ClapEmbedder`).
        text: Compare with this text instead of what was heard.
        side: "played" or "mix"; None means played beside heard, and the mix beside a text.
        download: Whether a hub name may be downloaded.
        gates: Gate settings; None switches the gates off.
        embedder: Something that embeds, instead of `checkpoint`.

    Raises:
        ConfigError: There is neither checkpoint nor embedder, or `side` is unknown.
        CheckpointError: The weights are not here or cannot be loaded.
    """

    name = "clap"
    window_seconds = 10.0
    min_window_seconds = 5.0
    hop_seconds = 5.0
    causal = True
    range = (-1.0, 1.0)
    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        text: str | None = None,
        side: Side | None = None,
        download: bool = False,
        gates: GateSettings | None = GateSettings(),  # noqa: B008 - frozen
        embedder: AudioEmbedder | None = None,
    ) -> None:
        self.side: Side = side if side is not None else "played" if text is None else "mix"
        if self.side not in SIDES:
            raise ConfigError(unknown_name_message("side of reward 'clap'", str(side), SIDES))
        self.text = text
        self.gates = gates
        self.embedder = ClapEmbedder(checkpoint, download) if embedder is None else embedder
        self._text = None if text is None else self.embedder.embed_text([text])

    @property
    def version(self) -> str:
        """Scoring version, what is compared, and the version of the embedder."""
        return f"{SCORING_VERSION}-{self.side}-{'heard' if self.text is None else 'text'}-{self.embedder.version}"

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` cosines, gated; finite for any audio."""
        rate = windows.sample_rate
        heard, played = both_sides(self.name, windows, rate)
        if len(heard) == 0:
            return np.zeros(0, dtype=np.float32)
        ours = self.embedder.embed(played if self.side == "played" else heard + played, rate)
        theirs = self.embedder.embed(heard, rate) if self._text is None else self._text
        scores = np.clip(np.sum(ours.astype(np.float64) * theirs, axis=1), -1.0, 1.0)
        if self.gates is not None:
            scores = lowered(scores, openness(heard, played, rate, self.gates), FLOOR)
        return scores.astype(np.float32)
