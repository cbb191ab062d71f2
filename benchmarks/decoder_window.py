"""What a decoder loses when it plays longer than it was trained, and what its sliding window is worth there.

    python benchmarks/decoder_window.py                       # the shipped decoder, some minutes on two cores
    python benchmarks/decoder_window.py --checkpoint runs/a/decoder.safetensors --songs 16

Prints the loss of the first codebook in nats, the own past being visible, over thirds of held-out songs.
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
from jamgym_agents.mle.token_data import TokenBatch, load_tokens

#: Pairs of window and sinks; None looks back to the start.
MEMORIES: tuple[tuple[int | None, int], ...] = ((None, 4), (250, 0), (250, 4), (250, 16), (125, 4))


@torch.no_grad()
def losses(decoder: AccompanimentDecoder, songs: TokenBatch, t_f: int, k: int) -> np.ndarray:
    """Return the loss `(B, T)` of the first codebook for every song and frame."""
    rows = len(songs.heard)
    cell = torch.full((rows,), t_f), torch.full((rows,), k)
    _, hidden = decoder.trunk(songs.heard, songs.target, songs.instrument, *cell)
    nothing = hidden.new_zeros(*hidden.shape[:2], decoder.config.latent_dim)
    logits = decoder.depth.level_logits(hidden, nothing, 0).unsqueeze(2)
    return token_loss(logits, songs.target[..., :1])[..., 0].numpy()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a decoder; the shipped one if none is given")
    parser.add_argument("--corpus", default="band", help="a corpus with a validation split")
    parser.add_argument("--songs", type=positive, default=48, help="sequences that are drawn from held-out songs")
    parser.add_argument("--frames", type=positive, default=600, help="length of each")
    parser.add_argument("--t-f", type=int, nargs="+", default=[-25, 25], help="future visibilities in frames")
    parser.add_argument("--k", type=positive, default=5, help="frames per call")
    arguments = parser.parse_args()
    codec = codecs.create("spectral")
    decoder = load_decoder(arguments.checkpoint, codec).eval()
    data = load_tokens(corpora.create(arguments.corpus), codec, "validation", arguments.songs)
    batch = data.batch(np.random.default_rng(0), arguments.songs, arguments.frames)
    thirds = np.array_split(np.arange(arguments.frames), 3)
    table = Table(title=f"loss of the first codebook, {arguments.songs} sequences of {arguments.frames} frames")
    for heading in ("t_f", "window", "sinks", *(f"frames {part[0]}-{part[-1]}" for part in thirds)):
        table.add_column(heading, justify="right")
    cells = [(t_f, *memory) for t_f in arguments.t_f for memory in MEMORIES]
    architecture = decoder.config
    for t_f, window, sinks in track(cells, description="measuring"):
        decoder.config = replace(architecture, window=window, sinks=sinks)
        # Some songs at a time: without a window every frame looks at all others.
        parts = [
            losses(decoder, batch.rows(slice(at, at + 4)), t_f, arguments.k) for at in range(0, len(batch.song), 4)
        ]
        loss = np.concatenate(parts)
        shown = [f"{loss[:, part].mean():.3f}" for part in thirds]
        table.add_row(f"{t_f:+d}", "all" if window is None else str(window), str(sinks), *shown)
    Console().print(table)


if __name__ == "__main__":
    main()
