"""What a decoder loses when it plays longer than it was trained, and what its sliding window is worth there.

    python benchmarks/decoder_window.py                       # the shipped decoder, some minutes on two cores
    python benchmarks/decoder_window.py --checkpoint runs/a/decoder.safetensors --songs 16

Prints the loss of the first codebook in nats, the own past being visible: within the decoder's window, and in the
first and the second half of what comes after it. One target of each held-out song, from its first frame on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch
from measuring import positive
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jamgym.registry import codecs, corpora
from jamgym_agents.checkpoint import load_decoder
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.mle.losses import token_loss
from jamgym_agents.mle.token_cache import load_tokens
from jamgym_agents.mle.token_data import TokenBatch, TokenSet


@torch.no_grad()
def losses(decoder: AccompanimentDecoder, songs: TokenBatch, t_f: int, k: int) -> np.ndarray:
    """Return the loss `(B, T)` of the first codebook for every song and frame."""
    rows = len(songs.heard)
    cell = torch.full((rows,), t_f), torch.full((rows,), k)
    _, hidden = decoder.trunk(songs.heard, songs.target, songs.instrument, *cell)
    nothing = hidden.new_zeros(*hidden.shape[:2], decoder.config.latent_dim)
    logits = decoder.depth.level_logits(hidden, nothing, 0).unsqueeze(2)
    return token_loss(logits, songs.target[..., :1])[..., 0].numpy()


def first_frames(data: TokenSet, frames: int) -> TokenBatch:
    """Return the beginning of the first pair of every song that is long enough."""
    long = np.flatnonzero(np.diff(data.offsets) >= frames)
    _, first = np.unique(data.song[long], return_index=True)
    pairs = long[first]
    index = data.offsets[pairs, None] + np.arange(frames)
    names = ("heard", "target", "root", "chroma")
    crops = {name: torch.from_numpy(getattr(data, name)[index].astype(np.int64)) for name in names}
    return TokenBatch(**crops, instrument=torch.from_numpy(data.instrument[pairs]), song=data.song[pairs])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a decoder; the shipped one if none is given")
    parser.add_argument("--corpus", default="band", help="a corpus with a validation split")
    parser.add_argument("--songs", type=positive, default=48, help="held-out songs")
    parser.add_argument("--frames", type=positive, default=600, help="length of each; more than the decoder's window")
    parser.add_argument("--t-f", type=int, nargs="+", default=[-25, 25], help="future visibilities in frames")
    parser.add_argument("--k", type=positive, default=5, help="frames per call")
    arguments = parser.parse_args()
    codec = codecs.create("spectral")
    decoder = load_decoder(arguments.checkpoint, codec)
    trained = decoder.config
    length, end = trained.window or 250, arguments.frames
    if end < length + 2:
        parser.error(f"--frames is {end}; give at least {length + 2}, which is beyond the window")
    data = load_tokens(corpora.create(arguments.corpus), codec, "validation", arguments.songs)
    batch = first_frames(data, end)
    middle = (length + end) // 2
    parts = [slice(0, length), slice(length, middle), slice(middle, end)]
    table = Table(title=f"loss of the first codebook on {len(batch.song)} songs, k={arguments.k}")
    frame = codec.hop_samples / codec.sample_rate
    spans = [f"{frame * part.start:.0f}-{frame * part.stop:.0f} s" for part in parts]
    for heading in ("t_f", "window", "sinks", *spans):
        table.add_column(heading, justify="right")
    memories = [(None, 4), (length, 0), (length, 4), (length, 16), (length // 2, 4)]
    cells = [(t_f, *memory) for t_f in arguments.t_f for memory in memories]
    for t_f, window, sinks in track(cells, description="measuring"):
        decoder.config = replace(trained, window=window, sinks=sinks)
        # Some songs at a time: without a window every frame looks at all others.
        rows = [slice(start, start + 4) for start in range(0, len(batch.song), 4)]
        loss = np.concatenate([losses(decoder, batch.rows(some), t_f, arguments.k) for some in rows])
        shown = [f"{loss[:, part].mean():.3f}" for part in parts]
        table.add_row(f"{t_f:+d}", "all" if window is None else str(window), str(sinks), *shown)
    Console().print(table)


if __name__ == "__main__":
    main()
