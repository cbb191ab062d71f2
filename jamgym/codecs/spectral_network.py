"""The network of codec `spectral`: causal, at frame rate, with a streaming state per stage.

Audio → log spectra (two long and four short windows that end with the frame) → causal ConvNeXt blocks →
latents; latents → causal ConvNeXt blocks → what sounds, in two parts:

- a bank of oscillators at fixed frequencies, a quarter tone apart, whose levels the network sets: tones
  that stay in tune across frames, since their phases run on by themselves and need no bits (in the
  spirit of DDSP, Engel et al. 2020);
- four short-time spectra per frame, overlap-added: attacks, noise, and what lies between the tones
  (after Vocos, Siuzdak 2023, without its adversarial losses).

Every window and every oscillator level that a frame writes starts inside that frame, so its samples are
final with its codes: no look-ahead in either direction.

Shapes: B streams, T frames, S = T * hop samples, C channels, D latent dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jamgym.codecs.quantizer import ResidualVectorQuantizer
from jamgym.errors import ConfigError
from jamgym.ranges import check_at_least


@dataclass(frozen=True)
class SpectralConfig:
    """Architecture of the codec.

    Attributes:
        sample_rate: Samples per second.
        hop: Samples per frame.
        num_codebooks: Codebooks Q.
        cardinality: Entries per codebook.
        latent_dim: Dimensions of the quantized latents D.
        channels: Width at frame rate.
        encoder_blocks: ConvNeXt blocks of the encoder.
        decoder_blocks: ConvNeXt blocks of the decoder at frame rate.
        fine_channels: Width at four times the frame rate.
        fine_blocks: ConvNeXt blocks there.
        kernel: Taps of each depthwise convolution.
    """

    sample_rate: int = 16_000
    hop: int = 640
    num_codebooks: int = 4
    cardinality: int = 1024
    latent_dim: int = 96
    channels: int = 384
    encoder_blocks: int = 4
    decoder_blocks: int = 4
    fine_channels: int = 256
    fine_blocks: int = 3
    kernel: int = 7

    def __post_init__(self) -> None:
        """Refuse sizes that no network can have, and hops that the windows of synthesis do not fit."""
        check_at_least(self, _LEAST)
        if self.hop not in (valid := valid_hops()):
            near = min(valid, key=lambda hop: abs(hop - self.hop))
            raise ConfigError(
                f"hop is {self.hop}; a quarter of it must divide the synthesis window of {SYNTHESIS_WINDOW} samples at "
                f"least twice. Give one of {', '.join(map(str, valid))}; the nearest is {near}."
            )

    @property
    def sub_hop(self) -> int:
        """Samples between the short windows: four per frame."""
        return self.hop // 4


LONG_WINDOW = 2048
#: For bass notes: only its lowest bins are used.
BASS_WINDOW = 4096
BASS_BINS = 160
SHORT_WINDOW = 512
SYNTHESIS_WINDOW = 640
#: Samples over which a synthesis window rises; short, so that attacks are not smeared backwards.
RISE = 128
#: Oscillators per octave, and their lowest and highest frequency in Hz.
TONES_PER_OCTAVE = 24
LOWEST_TONE, HIGHEST_TONE = 36.7, 6000.0
#: Below this many Hz only the oscillators sound: the short windows' bins are wider there than the tones' distances.
TONES_ONLY_BELOW = 350.0

#: The least value of each size; the highest oscillator must lie below half of the sample rate.
_LEAST = {
    "sample_rate": 2 * int(HIGHEST_TONE),
    **dict.fromkeys(("num_codebooks", "latent_dim", "channels", "fine_channels"), 1),
    "cardinality": 2,
    "encoder_blocks": 0,
    "decoder_blocks": 0,
    "fine_blocks": 0,
    "kernel": 2,  # with one tap there would be no past to keep
}


def valid_hops() -> list[int]:
    """Return the hops whose synthesis windows overlap and add up to one: each lasts a whole number of sub-hops."""
    return [4 * sub for sub in range(1, SYNTHESIS_WINDOW // 2 + 1) if SYNTHESIS_WINDOW % sub == 0]


class CausalBlock(nn.Module):
    """ConvNeXt block (Liu et al. 2022) whose depthwise convolution sees the past only; `(B, T, C)`."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.context = kernel - 1
        self.depthwise = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.reduce = nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return output `(B, T, C)` and the last `kernel - 1` inputs, the `past` of the next call."""
        if past is None:
            past = x.new_zeros(x.shape[0], self.context, x.shape[2])
        joined = torch.cat([past, x], dim=1)
        y = self.depthwise(joined.transpose(1, 2)).transpose(1, 2)
        y = self.reduce(F.gelu(self.expand(self.norm(y))))
        return x + self.scale * y, joined[:, -self.context :]


class CausalStack(nn.Module):
    """Blocks one after the other; the streaming state is one tensor `(B, kernel - 1, C)` per block."""

    def __init__(self, channels: int, blocks: int, kernel: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([CausalBlock(channels, kernel) for _ in range(blocks)])
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return normalised output `(B, T, C)` and the new state."""
        new_state = []
        for index, block in enumerate(self.blocks):
            x, past = block(x, None if state is None else state[index])
            new_state.append(past)
        return self.norm(x), new_state


class SpectralEncoder(nn.Module):
    """Audio `(B, S)` to latents `(B, T, D)`. State: the last samples and one tensor per block."""

    window_bass: Tensor
    window_long: Tensor
    window_short: Tensor

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        self.context = BASS_WINDOW - config.hop
        self.register_buffer("window_bass", torch.hann_window(BASS_WINDOW), persistent=False)
        self.register_buffer("window_long", torch.hann_window(LONG_WINDOW), persistent=False)
        self.register_buffer("window_short", torch.hann_window(SHORT_WINDOW), persistent=False)
        bins = (LONG_WINDOW // 2 + 1) + 4 * (SHORT_WINDOW // 2 + 1) + BASS_BINS
        self.project = nn.Linear(bins, config.channels)
        self.stack = CausalStack(config.channels, config.encoder_blocks, config.kernel)
        self.head = nn.Linear(config.channels, config.latent_dim)

    def spectra(self, audio: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return log spectra `(B, T, bins)` and the samples that the next call needs."""
        hop, sub = self.config.hop, self.config.sub_hop
        joined = torch.cat([past, audio], dim=1)
        bass = torch.fft.rfft(joined.unfold(1, BASS_WINDOW, hop) * self.window_bass).abs()[..., :BASS_BINS] / 22.6
        recent = joined[:, BASS_WINDOW - LONG_WINDOW :]
        long = torch.fft.rfft(recent.unfold(1, LONG_WINDOW, hop) * self.window_long).abs() / 16.0
        first = self.context + hop - 3 * sub - SHORT_WINDOW  # the fourth short window ends with the frame
        short = torch.fft.rfft(joined[:, first:].unfold(1, SHORT_WINDOW, sub) * self.window_short).abs() / 8.0
        frames = long.shape[1]
        features = torch.cat([long, short.reshape(len(audio), frames, -1), bass], dim=2)
        return torch.log(features + 1e-3) * 0.3 + 1.0, joined[:, -self.context :]

    def forward(self, audio: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Encode whole frames; returns latents and the streaming state."""
        past = audio.new_zeros(len(audio), self.context) if state is None else state[0]
        features, past = self.spectra(audio, past)
        x, rest = self.stack(self.project(features), None if state is None else state[1:])
        return self.head(x), [past, *rest]


def synthesis_window(sub_hop: int) -> Tensor:
    """Return `(SYNTHESIS_WINDOW,)`: fast rise, slow fall, overlap-adding to one at `sub_hop`."""
    rise = torch.sin(torch.linspace(0, torch.pi / 2, RISE + 1)[:-1]).square()
    fall = torch.cos(torch.linspace(0, torch.pi / 2, SYNTHESIS_WINDOW - RISE)).square()
    window = torch.cat([rise, fall])
    total = window.reshape(-1, sub_hop).sum(0)
    return window / total.repeat(SYNTHESIS_WINDOW // sub_hop)


class OscillatorBank(nn.Module):
    """Sums tones of fixed frequencies whose levels glide from one sub-frame to the next.

    The phase of a tone is a function of time alone. Within a sub-frame of `step` samples that starts at
    phase p, sin(p + w t) = sin p cos w t + cos p sin w t, so a sub-frame is one matrix product.
    """

    frequencies: Tensor
    basis: Tensor
    cycles: Tensor
    offset: Tensor

    def __init__(self, sample_rate: int, step: int) -> None:
        super().__init__()
        octaves = math.log2(HIGHEST_TONE / LOWEST_TONE)
        self.tones = int(octaves * TONES_PER_OCTAVE) + 1
        frequency = LOWEST_TONE * 2.0 ** (torch.arange(self.tones, dtype=torch.float64) / TONES_PER_OCTAVE)
        time = torch.arange(step, dtype=torch.float64)
        angle = 2 * torch.pi * frequency.unsqueeze(1) / sample_rate * time
        rise = (time + 1) / step
        waves = [angle.cos() * (1 - rise), angle.sin() * (1 - rise), angle.cos() * rise, angle.sin() * rise]
        self.register_buffer("frequencies", frequency, persistent=False)
        self.register_buffer("basis", torch.cat(waves).float(), persistent=False)
        self.register_buffer("cycles", frequency * step / sample_rate, persistent=False)
        # Golden-ratio phases: tones that start together do not add up to a click.
        self.register_buffer("offset", (torch.arange(self.tones, dtype=torch.float64) * 0.618034) % 1, persistent=False)

    def forward(self, levels: Tensor, before: Tensor, first: Tensor) -> Tensor:
        """Return audio `(B, M * step)`.

        Args:
            levels: `(B, M, tones)` amplitudes at the end of each sub-frame.
            before: `(B, tones)` amplitudes at the start of the first one.
            first: `(B,)` number of the first sub-frame since the stream began, float64.
        """
        number = first.unsqueeze(1) + torch.arange(levels.shape[1], dtype=torch.float64, device=first.device)
        phase = (2 * torch.pi * ((number.unsqueeze(2) * self.cycles + self.offset) % 1)).float()
        start = torch.cat([before.unsqueeze(1), levels[:, :-1]], dim=1)
        sin, cos = phase.sin(), phase.cos()
        return (torch.cat([start * sin, start * cos, levels * sin, levels * cos], dim=2) @ self.basis).flatten(1)


class SpectralDecoder(nn.Module):
    """Latents `(B, T, D)` to audio `(B, S)`.

    State: one tensor per block, the tail to overlap-add, the last levels of the tones, the sub-frame count.
    """

    window: Tensor
    audible: Tensor

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(config.latent_dim, config.channels)
        self.coarse = CausalStack(config.channels, config.decoder_blocks, config.kernel)
        self.split = nn.Linear(config.channels, 4 * config.fine_channels)
        self.fine = CausalStack(config.fine_channels, config.fine_blocks, config.kernel)
        self.bins = SYNTHESIS_WINDOW // 2 + 1
        self.head = nn.Linear(config.fine_channels, 3 * self.bins)
        self.bank = OscillatorBank(config.sample_rate, config.sub_hop)
        self.levels = nn.Linear(config.fine_channels, self.bank.tones)
        nn.init.constant_(self.levels.bias, -4.5)
        edge = torch.arange(self.bins) * config.sample_rate / SYNTHESIS_WINDOW / TONES_ONLY_BELOW
        self.register_buffer("audible", (2.0 * edge - 1.0).clamp(0.0, 1.0), persistent=False)
        self.register_buffer("window", synthesis_window(config.sub_hop), persistent=False)

    def forward(self, latents: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Decode whole frames; returns audio and the streaming state."""
        audio, _, new_state = self.synthesize(latents, state)
        return audio, new_state

    def synthesize(self, latents: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Decode whole frames; returns audio, the levels `(B, 4T, tones)` of the tones and the streaming state."""
        batch, frames, _ = latents.shape
        blocks = self.config.decoder_blocks
        x, coarse_state = self.coarse(self.project(latents), None if state is None else state[:blocks])
        x = self.split(x).reshape(batch, 4 * frames, self.config.fine_channels)
        x, fine_state = self.fine(x, None if state is None else state[blocks:-3])
        if state is None:
            before, first = x.new_zeros(batch, self.bank.tones), x.new_zeros(batch, dtype=torch.float64)
        else:
            before, first = state[-2], state[-1]
        levels = torch.exp(self.levels(x).float().clamp(max=0.0))
        tones = self.bank(levels, before.float(), first)
        noise, tail = self._overlap_add(self.head(x).float(), None if state is None else state[-3])
        return tones + noise, levels, [*coarse_state, *fine_state, tail, levels[:, -1], first + 4 * frames]

    def _overlap_add(self, spectra: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Turn `(B, 4T, 3 * bins)` into audio `(B, S)` and the tail that the next call needs."""
        magnitude, real, imaginary = spectra.split(self.bins, dim=-1)
        magnitude = torch.exp(magnitude.clamp(max=6.0) - 3.0) * self.audible
        norm = torch.rsqrt(real.square() + imaginary.square() + 1e-6)
        spectrum = torch.complex(magnitude * real * norm, magnitude * imaginary * norm)
        pieces = torch.fft.irfft(spectrum, SYNTHESIS_WINDOW) * self.window
        hop, tail = self.config.sub_hop, SYNTHESIS_WINDOW - self.config.sub_hop
        length = spectra.shape[1] * hop + tail
        summed = F.fold(pieces.transpose(1, 2), (1, length), (1, SYNTHESIS_WINDOW), stride=(1, hop)).flatten(1)
        if before is not None:
            summed = torch.cat([summed[:, :tail] + before, summed[:, tail:]], dim=1)
        return summed[:, :-tail], summed[:, -tail:]


@dataclass(frozen=True)
class Reconstruction:
    """What one training pass returns.

    Attributes:
        audio: `(B, S)`.
        levels: `(B, 4T, tones)` of the oscillators.
        commitment: Commitment loss of the quantizer.
        live: `(Q,)` share of codes in use.
    """

    audio: Tensor
    levels: Tensor
    commitment: Tensor
    live: Tensor


class SpectralNetwork(nn.Module):
    """Encoder, quantizer and decoder together, as they are trained."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SpectralEncoder(config)
        self.quantizer = ResidualVectorQuantizer(config.num_codebooks, config.cardinality, config.latent_dim)
        self.decoder = SpectralDecoder(config)

    def forward(self, audio: Tensor, frozen_codes: bool = False) -> Reconstruction:
        """Reconstruct `(B, S)`; with `frozen_codes` only the decoder gets gradients and codebooks stay."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen_codes):
            latents, _ = self.encoder(audio)
            if frozen_codes:
                quantized = self.quantizer.decode(self.quantizer.encode(latents.float()))
                commitment, live = latents.new_zeros(()), latents.new_ones(self.config.num_codebooks)
            else:
                quantized, commitment, live = self.quantizer(latents.float())
        decoded, levels, _ = self.decoder.synthesize(quantized)
        return Reconstruction(decoded, levels, commitment, live)
