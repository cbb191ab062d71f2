"""The losses of pretraining, as shares of a step's mean.

A step may be cut into micro-batches and spread over processes. Some losses count fewer entries than there are
frames, and not as many in each part; a mean of the parts' means would weigh entries differently. So every loss is
a sum over the part, divided by the count of the *whole* batch: the parts add up to the step's mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from jamgym_agents.decoder import DecoderOutput
from jamgym_agents.lookahead import coming_frames
from jamgym_agents.mle.batch import StepInputs
from jamgym_agents.mle.settings import PretrainConfig
from jamgym_agents.visibility import visible_frames


@dataclass(frozen=True)
class Counts:
    """Over how many entries of a whole step each loss is averaged; at least 1.

    Attributes:
        scored: Frames whose codes are predicted.
        frames: All frames.
        sounding: Frames in which the target sounds.
        coming: Coming input frames that count, one for each frame that predicts them.
    """

    scored: int
    frames: int
    sounding: int
    coming: int


def count_entries(inputs: StepInputs, lookahead_frames: int) -> Counts:
    """Return the counts of `inputs`, which must be the whole step's."""
    sequences, frames = inputs.tokens.root.shape
    visible = visible_frames(frames, inputs.t_f, inputs.k)
    _, coming = coming_frames(visible, inputs.scored, lookahead_frames)
    return Counts(
        scored=sequences * len(inputs.scored),
        frames=sequences * frames,
        sounding=max(1, int(_sounding(inputs.tokens.chroma).sum())),
        coming=max(1, int(coming.sum())),
    )


def token_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the cross-entropy `(B, T, Q)` in nats of `codes` under `logits` `(B, T, Q, V)`."""
    return F.cross_entropy(logits.float().flatten(0, -2), codes.flatten(), reduction="none").view(codes.shape)


def losses(output: DecoderOutput, inputs: StepInputs, counts: Counts) -> dict[str, Tensor]:
    """Return this part's share of each loss, in nats.

    Args:
        output: Of the decoder for `inputs`.
        inputs: The whole step, or some rows of it.
        counts: Of the whole step.

    Returns:
        `codebook_0` to `codebook_{Q-1}`, `root`, `input_root`, `chroma` (silent frames do not count) and, if it was
        predicted, `lookahead`.
    """
    tokens = inputs.tokens
    per_codebook = token_loss(output.logits, tokens.target[:, inputs.scored]).sum((0, 1)) / counts.scored
    found = {f"codebook_{q}": value for q, value in enumerate(per_codebook.unbind())}
    for name, logits in (("root", output.root), ("input_root", output.input_root)):
        summed = F.cross_entropy(logits.float().flatten(0, 1), tokens.root.flatten(), reduction="sum")
        found[name] = summed / counts.frames
    shares = tokens.chroma / tokens.chroma.sum(-1, keepdim=True).clamp_min(1e-6)
    per_frame = -(shares * output.chroma.float().log_softmax(-1)).sum(-1)
    found["chroma"] = (per_frame * _sounding(tokens.chroma)).sum() / counts.sounding
    if output.lookahead is not None:
        logits, codes = output.lookahead.logits.float(), output.lookahead.codes
        found["lookahead"] = F.cross_entropy(logits, codes, reduction="sum") / counts.coming
    return found


def weighted_sum(found: dict[str, Tensor], config: PretrainConfig) -> Tensor:
    """Return the loss that is minimised: the mean over codebooks, and the auxiliary ones by their weights."""
    tokens = torch.stack([value for name, value in found.items() if name.startswith("codebook_")])
    loss = tokens.mean() + config.root_weight * (found["root"] + 0.5 * found["input_root"])
    loss = loss + config.chroma_weight * found["chroma"]
    if "lookahead" in found:
        loss = loss + config.lookahead_weight * found["lookahead"]
    return loss


def _sounding(chroma: Tensor) -> Tensor:
    return chroma.sum(-1) > 0.5
