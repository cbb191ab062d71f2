"""What the decoder plays along with one held-out input, live: to hear from early on whether it learns."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jamgym.audio import within_full_scale
from jamgym.codec import Codec
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.mle.token_data import TokenBatch
from jamgym_agents.sampling import Sampling
from jamgym_agents.streaming import StreamingDecoder


@torch.no_grad()
def play_live(
    decoder: AccompanimentDecoder, heard: Tensor, instrument: Tensor, t_f: int, k: int, seed: int = 0
) -> Tensor:
    """Return the codes `(B, T, Q)` that `decoder`, in eval mode, plays; call i has heard frames before i k + t_f.

    Args:
        decoder: Computes on its own device; the other tensors must be there too.
        heard: `(B, T, Q)` codes of the input.
        instrument: `(B,)` class index to play.
        t_f: Future visibility in frames.
        k: Frames per call.
        seed: Of the sampling, at temperature 1.
    """
    rows, frames, _ = heard.shape
    device = heard.device
    generator = torch.Generator(device).manual_seed(seed)
    stream = StreamingDecoder(decoder, capacity=frames)
    state = stream.initial_state(rows)
    state.reset(torch.ones(rows, dtype=torch.bool, device=device), instrument)
    known, chunks = 0, []
    for start in range(0, frames, k):
        visible = min(max(start + t_f, 0), frames)
        stream.hear(state, heard[:, known:visible], torch.full((rows,), visible - known, device=device))
        known = visible
        chunks.append(stream.generate(state, min(k, frames - start), Sampling(), generator).codes)
    return torch.cat(chunks, dim=1)


def live_mix(decoder: AccompanimentDecoder, codec: Codec, batch: TokenBatch, t_f: int, k: int) -> NDArray[np.float32]:
    """Return audio `(S,)` of the first input in `batch` and of what `decoder` plays along with it.

    It goes through the codec, and is turned down if it would clip.
    """
    device = decoder.vectors.device
    first = batch.rows(slice(0, 1)).to(device)
    training = decoder.training
    decoder.eval()
    played = play_live(decoder, first.heard, first.instrument, t_f, k)
    decoder.train(training)
    codes = torch.cat([first.heard, played]).cpu().numpy().astype(np.int16)
    return within_full_scale(codec.decode(codes).sum(0))
