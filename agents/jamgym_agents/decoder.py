"""The accompaniment decoder: two streams on one time axis, one network for every (t_f, k).

Input frames attend causally to input frames; output frame n attends to outputs < n and to the input
frames that are visible to its chunk. Rotary positions are frame times, so t_f and k enter through the
mask alone, and the same frozen network under a wider mask is a look-ahead teacher. A depth module
predicts the Q codes of a frame one after the other, so there is no delay pattern.

Shapes: B sequences, T frames, Q codebooks, V entries, C width, D latent dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jamgym.corpus import INSTRUMENTS
from jamgym.errors import ConfigError
from jamgym.ranges import check_at_least, check_shares
from jamgym_agents.aligned import AlignedInput
from jamgym_agents.attention import Angles, Block, rotary_angles
from jamgym_agents.lookahead import Lookahead, LookaheadHead
from jamgym_agents.visibility import attention_masks, visible_frames

#: Classes of the auxiliary root target: twelve pitch classes and "no chord".
ROOT_CLASSES = 13


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture of the decoder.

    Attributes:
        num_codebooks: Q, of the codec.
        cardinality: V, of the codec.
        latent_dim: D, of the codec.
        dim: Width C.
        layers: Transformer blocks.
        heads: Query heads.
        kv_heads: Key and value heads.
        depth_dim: Hidden width of the depth module.
        dropout: In pretraining; fine-tuning turns it off.
        lookahead_frames: Coming input frames that an auxiliary head predicts in pretraining; 0 builds no head.
        window: Frames of either stream that a frame can look back on, itself included, so that memory and cost of
            an endless stream are bounded; at most what training has shown. None reaches back to the start.
        sinks: First frames of either stream that always stay in sight.
        aligned_frames: Input frames, from the one that sounds with it on, that an output frame is given directly where
            they are visible, beside what attention finds; 0 gives none.
        aligned_past: Input frames before that one that it is given in the same way.
    """

    num_codebooks: int = 4
    cardinality: int = 1024
    latent_dim: int = 96
    dim: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    depth_dim: int = 384
    dropout: float = 0.0
    lookahead_frames: int = 0
    window: int | None = 250
    sinks: int = 4
    aligned_frames: int = 0
    aligned_past: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that no network can have, and a window that does not hold the sinks."""
        names = ("num_codebooks", "cardinality", "latent_dim", "dim", "layers", "heads", "kv_heads", "depth_dim")
        check_at_least(self, {**dict.fromkeys(names, 1), "aligned_frames": 0, "aligned_past": 0})
        check_shares(self, ("dropout",))
        if self.dim % (2 * self.heads):
            raise ConfigError(
                f"dim is {self.dim} and heads {self.heads}; dim must be a multiple of 2 * heads = {2 * self.heads}, "
                "since the halves of a head are turned against each other."
            )
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"heads is {self.heads} and kv_heads {self.kv_heads}; every key head serves as many query heads, so "
                "heads must be a multiple of kv_heads."
            )
        if self.sinks < 0 or (self.window is not None and self.window <= self.sinks):
            raise ConfigError(
                f"window is {self.window} and sinks {self.sinks}; the window needs more frames than there are sinks, "
                "and the sinks are at least 0. Use window=None to look back to the start."
            )
        if self.window is not None and self.aligned_past >= self.window:
            raise ConfigError(
                f"aligned_past is {self.aligned_past} and window {self.window}; what lies outside the window is not "
                "kept, so aligned_past must be less."
            )

    @property
    def gives_aligned(self) -> bool:
        """Whether output frames are given input frames directly."""
        return self.aligned_frames + self.aligned_past > 0


@dataclass(frozen=True)
class DecoderOutput:
    """What one teacher-forced pass returns.

    Attributes:
        logits: `(B, T, Q, V)`, or those of the frames that were asked for.
        hidden: `(B, T, C)` of the output stream; frame n's depends on outputs < n only.
        root: `(B, T, 13)` logits of the chord root under each output frame (auxiliary).
        chroma: `(B, T, 12)` logits of the target's chroma (auxiliary).
        input_root: `(B, T, 13)` logits of the chord root of each input frame (auxiliary).
        lookahead: Predictions of coming input frames (auxiliary), if they were asked for.
    """

    logits: Tensor
    hidden: Tensor
    root: Tensor
    chroma: Tensor
    input_root: Tensor
    lookahead: Lookahead | None = None


class DepthModule(nn.Module):
    """Predicts code q of a frame from the frame's hidden state and the codes before q."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.so_far = nn.Linear(config.latent_dim, config.dim)
        self.level = nn.Parameter(torch.zeros(config.num_codebooks, config.dim))
        self.norm = nn.LayerNorm(config.dim)
        self.expand = nn.ModuleList([nn.Linear(config.dim, config.depth_dim) for _ in range(config.num_codebooks)])
        self.head = nn.ModuleList(
            [nn.Linear(config.depth_dim, config.cardinality) for _ in range(config.num_codebooks)]
        )

    def level_logits(self, hidden: Tensor, partial: Tensor, q: int) -> Tensor:
        """Return logits `(..., V)` of code q, given the sum `(..., D)` of the latents before it."""
        x = self.norm(hidden + self.so_far(partial) + self.level[q])
        return self.head[q](F.gelu(self.expand[q](x)))


class AccompanimentDecoder(nn.Module):
    """See the module's docstring.

    Args:
        config: Architecture.
        codebook_vectors: `(Q, V, D)` entries of the codec; None leaves zeros, to be loaded.
    """

    vectors: Tensor

    def __init__(self, config: DecoderConfig, codebook_vectors: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        shape = (config.num_codebooks, config.cardinality, config.latent_dim)
        vectors = torch.zeros(shape) if codebook_vectors is None else codebook_vectors.float().clone()
        if tuple(vectors.shape) != shape:
            raise ValueError(f"codebook_vectors have shape {tuple(vectors.shape)}; the config says {shape}")
        if codebook_vectors is not None:
            # Unit scale at the input, whatever scale the codec's latents have.
            vectors = vectors / vectors.sum(0).std().clamp_min(1e-6)
        self.register_buffer("vectors", vectors)
        self.embed_input = nn.Linear(config.latent_dim, config.dim)
        self.embed_output = nn.Linear(config.latent_dim, config.dim)
        self.start = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.hidden_frame = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.instrument = nn.Embedding(len(INSTRUMENTS), config.dim)
        self.stream = nn.Parameter(torch.randn(2, config.dim) * 0.02)
        self.blocks = nn.ModuleList(
            [Block(config.dim, config.heads, config.kv_heads, config.dropout) for _ in range(config.layers)]
        )
        self.norm = nn.LayerNorm(config.dim)
        self.depth = DepthModule(config)
        self.root_head = nn.Linear(config.dim, ROOT_CLASSES)
        self.chroma_head = nn.Linear(config.dim, 12)
        self.input_root_head = nn.Linear(config.dim, ROOT_CLASSES)
        # The last ones, so that they change no initial weight of the others.
        self.lookahead: LookaheadHead | None = None
        if config.lookahead_frames > 0:
            self.lookahead = LookaheadHead(config.dim, config.cardinality, config.lookahead_frames)
        self.aligned: AlignedInput | None = None
        if config.gives_aligned:
            self.aligned = AlignedInput(config.latent_dim, config.dim, config.aligned_past, config.aligned_frames)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.config.dim // self.config.heads

    def latents(self, codes: Tensor) -> Tensor:
        """Return per-level entries `(..., Q, D)` of codes `(..., Q)`."""
        return torch.stack([self.vectors[q][codes[..., q]] for q in range(self.config.num_codebooks)], dim=-2)

    def frame_latents(self, codes: Tensor) -> Tensor:
        """Return the codec's latent vectors `(..., D)` of frames `(..., Q)`: the sums of their entries."""
        return self.latents(codes).sum(-2)

    def embed_heard(self, latents: Tensor) -> Tensor:
        """Embed the `frame_latents` `(B, T, D)` of input frames as `(B, T, C)`."""
        return self.embed_input(latents) + self.stream[0]

    def embed_played(self, codes: Tensor, instrument: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Embed played frames `(B, T, Q)` as `(B, T, C)`; frames in mask `hidden` `(B, T)` show nothing."""
        x = self.embed_output(self.frame_latents(codes))
        if hidden is not None:
            x = torch.where(hidden.unsqueeze(-1), self.hidden_frame.to(x.dtype), x)
        return x + self.stream[1] + self.instrument(instrument).unsqueeze(1)

    def embed_start(self, instrument: Tensor) -> Tensor:
        """Return the embedding `(B, 1, C)` that stands before the first played frame."""
        return (self.start + self.stream[1] + self.instrument(instrument)).unsqueeze(1)

    def trunk(
        self,
        input_codes: Tensor,
        output_codes: Tensor,
        instrument: Tensor,
        t_f: Tensor,
        k: Tensor,
        history_hidden: Tensor | None = None,
        exist: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states `(B, T, C)` of the input and the output stream.

        Arguments as in `forward`; `exist` as in `visible_frames`, for rows of several lengths.
        """
        frames = input_codes.shape[1]
        played = self.embed_played(output_codes[:, :-1], instrument, history_hidden)
        output = torch.cat([self.embed_start(instrument), played], dim=1)
        visible = visible_frames(frames, t_f, k, exist)
        heard = self.frame_latents(input_codes)
        if self.aligned is not None:
            output = output + self.aligned.whole(heard, visible)
        x = torch.cat([self.embed_heard(heard), output], dim=1)
        window, sinks = self.config.window, self.config.sinks
        masks = attention_masks(visible, window, sinks)
        # Once for each stream.
        angles = self.angles(torch.arange(frames, device=x.device).repeat(2), frames)
        for block in self.blocks:
            x = block(x, angles, masks, sinks)
        x = self.norm(x)
        return x[:, :frames], x[:, frames:]

    def angles(self, positions: Tensor, frames: int) -> Angles:
        """Return the angles that blocks need for frames at `positions` `(..., T)` of a stream of `frames` frames.

        While all of them fit into the window, those of their own places; then of their near places too.
        """
        window = self.config.window
        if window is None or frames <= window or not self.config.sinks:
            return rotary_angles(positions.unsqueeze(-2), self.head_dim)
        return cast(Block, self.blocks[0]).both_angles(positions, positions.clamp_max(window - 1))

    def depth_logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Return teacher-forced logits `(..., Q, V)` of `codes` `(..., Q)` given hidden states `(..., C)`."""
        entries = self.latents(codes)
        # Shifted rather than cumsum - entries: (a + b) - b is not a, and its rounding would tell of code b.
        before = torch.cat([torch.zeros_like(entries[..., :1, :]), entries[..., :-1, :].cumsum(-2)], dim=-2)
        levels = [self.depth.level_logits(hidden, before[..., q, :], q) for q in range(self.config.num_codebooks)]
        return torch.stack(levels, dim=-2)

    def forward(
        self,
        input_codes: Tensor,
        output_codes: Tensor,
        instrument: Tensor,
        t_f: Tensor,
        k: Tensor,
        history_hidden: Tensor | None = None,
        logit_frames: Tensor | None = None,
        lookahead: bool = False,
    ) -> DecoderOutput:
        """Predict every frame of `output_codes` in one pass.

        Args:
            input_codes: `(B, T, Q)` int64, what is heard.
            output_codes: `(B, T, Q)` int64, what was played.
            instrument: `(B,)` class index of the target.
            t_f: `(B,)` future visibility in frames.
            k: `(B,)` chunk sizes.
            history_hidden: `(B, T - 1)` mask of played frames that the network may not see (history dropout).
            logit_frames: Indices of the frames whose codes are predicted; None predicts all.
            lookahead: Also predict coming input frames from those frames, if the decoder has a head for it.
        """
        heard, hidden = self.trunk(input_codes, output_codes, instrument, t_f, k, history_hidden)
        wanted = slice(None) if logit_frames is None else logit_frames
        coming = None
        if lookahead and self.lookahead is not None:
            frames = input_codes.shape[1]
            at = torch.arange(frames, device=hidden.device) if logit_frames is None else logit_frames
            coming = self.lookahead(hidden, visible_frames(frames, t_f, k), input_codes[..., 0], at)
        return DecoderOutput(
            logits=self.depth_logits(hidden[:, wanted], output_codes[:, wanted]),
            hidden=hidden,
            root=self.root_head(hidden),
            chroma=self.chroma_head(hidden),
            input_root=self.input_root_head(heard),
            lookahead=coming,
        )


def with_aligned_input(decoder: AccompanimentDecoder, past: int, frames: int) -> AccompanimentDecoder:
    """Return a decoder that plays like `decoder`, which has no `AlignedInput`, and can learn to use one."""
    grown = AccompanimentDecoder(replace(decoder.config, aligned_past=past, aligned_frames=frames))
    assert grown.aligned is not None
    added = {f"aligned.{name}": value for name, value in grown.aligned.state_dict().items()}
    grown.load_state_dict(decoder.state_dict() | added)
    return grown.train(decoder.training)
