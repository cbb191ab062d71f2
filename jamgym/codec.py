"""The codec protocol: audio to discrete codes and back, offline and as a stream.

Shapes: N clips or streams, S samples, T = S / hop_samples frames, Q codebooks.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int16]
Audio = NDArray[np.float32]


class StreamingEncoder(Protocol):
    """Encoder state of N parallel streams."""

    def push(self, audio: Audio, rows: NDArray[np.int64] | None = None) -> Codes:
        """Encode the next samples `(N, m * hop_samples)` into codes `(N, m, Q)`.

        With distinct `rows` `(M,)`, `audio` and the result have M entries, and only these streams move on.
        """
        ...

    def reset(self, rows: NDArray[np.bool_] | None = None) -> None:
        """Forget the past of the rows in mask `rows` `(N,)`, or of all rows."""
        ...


class StreamingDecoder(Protocol):
    """Decoder state of N parallel streams."""

    def push(self, codes: Codes, rows: NDArray[np.int64] | None = None) -> Audio:
        """Decode the next codes `(N, m, Q)` into audio `(N, m * hop_samples)`.

        With distinct `rows` `(M,)`, `codes` and the result have M entries, and only these streams move on.
        """
        ...

    def reset(self, rows: NDArray[np.bool_] | None = None) -> None:
        """Forget the past of the rows in mask `rows` `(N,)`, or of all rows."""
        ...


@runtime_checkable
class Codec(Protocol):
    """Turns mono audio in [-1, 1] at `sample_rate` into codes and back.

    Attributes:
        name: Registry name.
        version: Changes whenever the same audio may give other codes; part of every cache key and
            of every checkpoint that depends on the codes.
        sample_rate: Samples per second.
        hop_samples: Samples per frame.
        num_codebooks: Q, codes per frame.
        cardinality: Entries per codebook; codes are in [0, cardinality).
        lookahead_samples: Input beyond a frame's end that encoding it needs; charged to d_in.
        decoder_lookahead_samples: Later codes, in samples, that decoding needs; charged to d_out.
        silence_codes: `(Q,)` codes that a slot with nothing to play stands for in token histories.
    """

    name: str
    version: str
    sample_rate: int
    hop_samples: int
    num_codebooks: int
    cardinality: int
    lookahead_samples: int
    decoder_lookahead_samples: int
    silence_codes: Codes

    def encode(self, audio: Audio) -> Codes:
        """Encode `(N, S)` into `(N, T, Q)`; S must be a multiple of `hop_samples`."""
        ...

    def decode(self, codes: Codes) -> Audio:
        """Decode `(N, T, Q)` into `(N, T * hop_samples)`."""
        ...

    def encoder(self, batch: int) -> StreamingEncoder:
        """Return a fresh streaming encoder for `batch` streams."""
        ...

    def decoder(self, batch: int) -> StreamingDecoder:
        """Return a fresh streaming decoder for `batch` streams."""
        ...
