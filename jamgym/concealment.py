"""Concealment in the waveform: a repeated frame fades out, and both ends are cross-faded.

Repeating a frame at full level would sound like a stutter, and a sudden end like a click. As packet-loss
concealment does (ITU-T G.711 Appendix I, WebRTC NetEq), each concealed frame is quieter than the one
before, and what follows rises from where the fade has got to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Audio, Codec, Codes
from jamgym.playback import CONCEALED

#: Level of each concealed frame relative to the one before it: -6 dB.
FADE = 0.5
#: Share of a frame over which what follows rises to full level.
RISE = 0.25


def conceal(
    audio: Audio, status: NDArray[np.int8], level: NDArray[np.float32], hop_samples: int
) -> tuple[Audio, NDArray[np.float32]]:
    """Fade the concealed frames of N streams.

    Args:
        audio: `(N, m * hop_samples)` of m frames.
        status: `(N, m)` of their slots; CONCEALED ones are faded.
        level: `(N,)` level in (0, 1] at which the last frame before ended; 1 at the start.
        hop_samples: Samples per frame.

    Returns:
        The faded audio, and the level at its end. Frames that neither are concealed nor follow one are unchanged.
    """
    frames = status.shape[1]
    faded = status == CONCEALED
    if frames == 0 or not (faded.any() or (level < 1.0).any()):
        return audio, level
    ends = np.ones((len(status), frames + 1), dtype=np.float32)
    ends[:, 0] = level
    for frame in range(frames):
        ends[:, frame + 1] = np.where(faded[:, frame], ends[:, frame] * FADE, 1.0)
    time = (np.arange(hop_samples, dtype=np.float32) + 1.0) / hop_samples
    rising = np.where(faded[:, :, None], time, np.minimum(time / np.float32(RISE), 1.0))
    gain = ends[:, :-1, None] + (ends[:, 1:] - ends[:, :-1])[:, :, None] * rising
    return audio * gain.reshape(audio.shape).astype(np.float32), ends[:, -1]


def render_played(codec: Codec, codes: Codes, status: NDArray[np.int8]) -> Audio:
    """Decode what N streams have played, `(N, T, Q)` with slots `(N, T)`, as it sounded: `(N, T * hop_samples)`."""
    if codes.shape[1] == 0:
        return np.zeros((len(codes), 0), dtype=np.float32)
    return conceal(codec.decode(codes), status, np.ones(len(codes), dtype=np.float32), codec.hop_samples)[0]
