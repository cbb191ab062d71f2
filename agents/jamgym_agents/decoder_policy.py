"""The decoder as a policy: batched, streaming, playing from what was heard and what was really played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from jamgym.codec import Codec, Codes
from jamgym.episode import Episode, EpisodeSource
from jamgym.errors import ActionError, ConfigError
from jamgym.playback import PLAYED_AS_EMITTED
from jamgym_agents.checkpoint import load_decoder
from jamgym_agents.compiled import make_stream
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.sampling import Sampling
from jamgym_agents.streaming import Chunk, DecoderState


def _column(values: NDArray[Any]) -> torch.Tensor:
    """Return an observation's `(N, 1)` numbers as `(N,)` int64."""
    return torch.as_tensor(np.array(values)).reshape(-1).long()


class DecoderPolicy:
    """Plays with an `AccompanimentDecoder`.

    Args:
        codec: The codec whose codes are played; must be the one the decoder was trained on.
        k: Frames per call.
        t_f: Unused here: what is visible reaches the policy through its observations.
        source: Unused; part of the common signature of policies.
        seed: Seed of the sampling.
        checkpoint: A decoder checkpoint, or the name of a shipped one: "mle", pretrained, or "ppo", fine-tuned from
            there; None loads "mle".
        decoder: Use this network instead of a checkpoint.
        temperature: Of the sampling.
        top_k: Of the sampling; 0 keeps all.
        top_p: Of the sampling; 1 keeps all.
        guidance: Of the sampling; above 1, what is heard counts for more.
        compiled: Whether frames are decoded in compiled loops, which takes a fraction of the time for few rows on
            processor cores; "auto" where they can be had. Needs the extra `fast`, and 40 seconds the first time for
            each kind of decoder. Plays the same up to rounding, which now and then decides what is drawn.
        name: Label for tables.
    """

    privileged = False

    def __init__(
        self,
        codec: Codec,
        k: int,
        t_f: int | None = None,
        source: EpisodeSource | None = None,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        decoder: AccompanimentDecoder | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
        compiled: bool | Literal["auto"] = False,
        name: str = "decoder",
    ) -> None:
        self.name = name
        self.k = k
        #: Frames per call of the environment; `k` may be less for a peek at the next state.
        self.chunk = k
        # Nobody else has it, so it does not learn: compiled loops need not read it in place.
        self.decoder = load_decoder(checkpoint, codec).requires_grad_(False) if decoder is None else decoder
        self.sampling = Sampling(temperature, top_k, top_p, guidance)
        self._stream = make_stream(self.decoder, compiled)
        self._generator = torch.Generator().manual_seed(seed)
        self._state: DecoderState | None = None
        self.last_chunk: Chunk | None = None

    def seed(self, seed: int) -> None:
        """Draw what follows from `seed`."""
        self._generator.manual_seed(seed)

    def reset(self, rows: NDArray[np.bool_], episodes: Sequence[Episode] | None = None) -> None:
        """Forget the past of the rows in mask `rows` `(N,)`."""
        mask = torch.as_tensor(np.asarray(rows, dtype=bool))
        guided = self.sampling.guided
        if self._state is None or (self._state.streams, self._state.guided) != (len(mask), guided):
            self._state = self._stream.initial_state(len(mask), guided)
        self._state.reset(mask, self._state.instrument[: len(mask)])

    def act(self, observation: Mapping[str, NDArray[Any]]) -> Codes:
        """Return codes `(N, k, Q)` for a batch of observations of mode "new"."""
        return self.step(observation).codes.numpy().astype(np.int16)

    def step(self, observation: Mapping[str, NDArray[Any]]) -> Chunk:
        """Hear, then decode one chunk; like `act`, with log-probabilities and hidden states.

        Raises:
            ConfigError: The observation is of mode "window", or of another chunk size.
            ActionError: A row stands in the middle of an episode of which nothing is known here.
        """
        self._check(observation)
        count = len(observation["heard"])
        if self._state is None or self._state.streams != count:
            self.reset(np.ones(count, dtype=bool))
        state = self._state
        assert state is not None
        # A row at frame 0 starts a new episode, whether or not anybody called reset.
        frame = _column(observation["frame"])
        state.reset(frame == 0, _column(observation["instrument"]))
        self._check_history(frame, state)
        sizes, decided = _column(observation["k"]), _column(observation["played_count"])
        status = np.asarray(observation["played_status"])
        slots = np.arange(status.shape[1]) < decided.numpy()[:, None]
        # Fewer than were emitted: the episode ended within the chunk, and what lies behind its end was not played.
        differ = (decided > 0) & (decided != sizes)
        if (slots & ~np.isin(status, PLAYED_AS_EMITTED)).any() or differ.any():
            played = torch.as_tensor(np.array(observation["played"])).long()
            self._stream.amend(state, played, decided, sizes)
        heard = torch.as_tensor(np.array(observation["heard"])).long()
        self._stream.hear(state, heard, _column(observation["heard_count"]))
        self.last_chunk = self._stream.generate(state, self.k, self.sampling, self._generator)
        if self.k == self.chunk and (sizes < self.k).any():
            self._stream.cut(state, self.last_chunk, sizes)
        return self.last_chunk

    def _check_history(self, frame: torch.Tensor, state: DecoderState) -> None:
        """Refuse rows that go on with an episode whose beginning this policy has not played."""
        unknown = (frame > 0) & (state.played[: state.streams] == 0)
        if unknown.any():
            row = int(unknown.nonzero()[0])
            raise ActionError(
                f"Row {row} is at frame {int(frame[row])}, but policy {self.name!r} has not played its episode: the "
                "number of rows or the guidance has changed, or reset was called. Begin a new episode in every row."
            )

    def _check(self, observation: Mapping[str, NDArray[Any]]) -> None:
        """Refuse observations that would be heard wrong without any other sign."""
        chunk = np.shape(observation["played"])[1]
        # Mode "window" has no count: it shows more than one call's slots.
        if "played_count" in observation and chunk >= self.chunk and int(np.max(observation["k"])) <= self.chunk:
            return
        raise ConfigError(
            f"The observation shows {chunk} played frames, but policy {self.name!r} plays chunks of k = {self.chunk}. "
            "It keeps its own history: use observation='new', not 'window', and the environment's own k."
        )
