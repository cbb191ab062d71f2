"""Does the decoder listen? Its loss with the true input against that with another song's.

A decoder may have a good loss and ignore its input, because its own past tells it nearly everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from jamgym.errors import ConfigError
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.mle.losses import token_loss
from jamgym_agents.mle.token_data import TokenBatch


@torch.no_grad()
def input_use(
    decoder: AccompanimentDecoder,
    batch: TokenBatch,
    t_f: int,
    k: int,
    rows: int = 32,
    hide_past: bool = False,
    all_codebooks: bool = False,
    other: bool = True,
) -> dict[str, np.ndarray]:
    """Measure per sequence `(B,)` how the loss depends on the input.

    The loss is that of the first codebook, which carries most of what is heard, or the mean of all. With
    `hide_past` the network sees none of what was played, so all that it knows comes from the input;
    otherwise the true past of 40 ms ago tells nearly everything about the next frame.

    Returns:
        `true`: loss with the sequence's own input; `other`, if wanted: with the input of another song of the batch;
        `root`: share of frames whose chord root the output stream names right.
    """
    device = decoder.vectors.device
    check_two_songs(batch)
    result: dict[str, list[np.ndarray]] = {"true": [], "root": []}
    if other:
        others = np.array([_other_song(batch.song, row) for row in range(len(batch.song))])
        result["other"] = []
    for start in range(0, len(batch.song), rows):
        part = batch.rows(slice(start, start + rows)).to(device)
        count = len(part.heard)
        inputs = {"true": part.heard}
        if other:
            inputs["other"] = batch.heard[others[start : start + rows]].to(device)
        for name, heard in inputs.items():
            _, hidden = decoder.trunk(
                heard,
                part.target,
                part.instrument,
                torch.full((count,), t_f, device=device),
                torch.full((count,), k, device=device),
                torch.ones(count, heard.shape[1] - 1, dtype=torch.bool, device=device) if hide_past else None,
            )
            if all_codebooks:
                logits = decoder.depth_logits(hidden, part.target)
            else:
                partial = hidden.new_zeros(*hidden.shape[:2], decoder.config.latent_dim)
                logits = decoder.depth.level_logits(hidden, partial, 0).unsqueeze(2)
            loss = token_loss(logits, part.target[..., : logits.shape[2]])
            result[name].append(loss.mean((1, 2)).cpu().numpy())
            if name == "true":
                right = decoder.root_head(hidden.float()).argmax(-1) == part.root
                result["root"].append(right.float().mean(1).cpu().numpy())
    return {name: np.concatenate(values) for name, values in result.items()}


def _other_song(songs: np.ndarray, row: int) -> int:
    """Return the next row of the batch that holds another song."""
    steps = (row + np.arange(1, len(songs))) % len(songs)
    return int(steps[songs[steps] != songs[row]][0])


def check_two_songs(batch: TokenBatch) -> None:
    """Refuse validation sequences of which none has another song's input to be compared with.

    Raises:
        ConfigError: All are of one song.
    """
    if len(np.unique(batch.song)) < 2:
        raise ConfigError(
            "All validation sequences are of one song, but its loss is compared with that under another song's input. "
            "Use at least two validation songs that are no shorter than `frames`: raise validation_songs, or the "
            "corpus's validation_share if it is a folder of songs."
        )


def half_interval(values: np.ndarray, songs: np.ndarray) -> float:
    """Return half of the 95 % interval of the mean of `values` `(B,)`, whose songs, `(B,)`, are what is drawn."""
    _, song = np.unique(songs, return_inverse=True)
    count = song.max() + 1
    # The mean is a ratio of sums over songs, of which some have more sequences than others.
    sums = np.bincount(song, weights=values - values.mean())
    return float(1.96 * math.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))


def validate(decoder: AccompanimentDecoder, batch: TokenBatch, cells: Iterable[tuple[int, int]]) -> dict[str, float]:
    """Return losses with the true and another song's input, and their difference with its 95 % interval.

    Args:
        decoder: In either mode; it is measured in eval mode.
        batch: Held-out sequences of at least two songs.
        cells: Pairs (t_f, k); names end in `_tf{t_f}_k{k}`.
    """
    training = decoder.training
    decoder.eval()
    figures: dict[str, float] = {}
    for t_f, k in cells:
        use = input_use(decoder, batch, t_f, k)
        alone = input_use(decoder, batch, t_f, k, hide_past=True, other=False)
        gain = use["other"] - use["true"]
        found = {
            "loss_true": use["true"].mean(),
            "loss_other": use["other"].mean(),
            "input_gain": gain.mean(),
            "input_gain_ci": half_interval(gain, batch.song),
            "root_accuracy": use["root"].mean(),
            "loss_past_hidden": alone["true"].mean(),
        }
        figures |= {f"validation/{name}_tf{t_f}_k{k}": float(value) for name, value in found.items()}
    decoder.train(training)
    return figures
