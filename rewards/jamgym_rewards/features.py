"""Time-frequency features of the learned rewards: level in decibels on a log-frequency axis.

Two analyses with common frame centres: a long window at a quarter of the sample rate resolves pitch
below `split_hz`, a short one at the full rate resolves time and everything above. Frames are *valid*
ones only (no padding at the ends), so a window cut out of a song's features equals the features of the
window cut out of its audio: training can cut features, and scoring sees the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

SAMPLE_RATE = 16000
DECIMATION = 4
SHORT_WINDOW = 1024
#: Power that stands for silence, in decibels.
FLOOR_DB = -110.0
_FRAMES_AT_ONCE = 1024


@dataclass(frozen=True)
class FeatureSpec:
    """Which features a network reads.

    Attributes:
        bins_per_octave: Resolution of the pitch axis; a multiple of 12, so that a transposition is a shift.
        octaves: Octaves of the pitch axis, from C1 (32.7 Hz).
        margin_semitones: Extra semitones at both ends, so that a transposed window has no empty edge.
        hop: Samples at 16 kHz per feature frame; a multiple of 4.
        long_window: Samples at 4 kHz of the pitch analysis.
        split_hz: Below this frequency pitch comes from the long window, above it from the short one.
        bands: Bands of the whole spectrum from the short window, for drums and onsets.
        flux: Whether the network reads the rise of each band instead of its level.
    """

    bins_per_octave: int = 24
    octaves: int = 7
    margin_semitones: int = 9
    hop: int = 320
    long_window: int = 1024
    split_hz: float = 1047.0
    bands: int = 8
    flux: bool = True

    @property
    def bins_per_semitone(self) -> int:
        """Bins that one semitone shifts by."""
        return self.bins_per_octave // 12

    @property
    def pitch_bins(self) -> int:
        """Pitch bins that a network reads."""
        return self.bins_per_octave * self.octaves

    @property
    def stored_bins(self) -> int:
        """Pitch bins with both margins."""
        return self.pitch_bins + 2 * self.margin_semitones * self.bins_per_semitone

    @property
    def rows(self) -> int:
        """Rows of the decibel array: stored pitch bins, then bands."""
        return self.stored_bins + self.bands

    @property
    def frame_rate(self) -> float:
        """Feature frames per second."""
        return SAMPLE_RATE / self.hop

    @property
    def reach(self) -> int:
        """Samples at 16 kHz that the first frame needs."""
        return (self.long_window - 1) * DECIMATION + len(_low_pass())

    def frames(self, samples: int) -> int:
        """Return the number of frames of `samples` samples at 16 kHz."""
        return max(0, (samples - self.reach) // self.hop + 1)


def _low_pass() -> np.ndarray:
    """Return the filter before decimation: flat to 1.1 kHz, closed where 4 kHz sampling folds onto it."""
    taps = np.arange(48) - 23.5
    taper = np.kaiser(48, 7.0)
    kernel = np.sinc(taps / DECIMATION) * taper
    return (kernel / kernel.sum()).astype(np.float32)


def _pitch_filters(spec: FeatureSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return weights `(long FFT bins, low)` and `(short FFT bins, high)` of the pitch bins."""
    low_hz = 32.7032 * 2.0 ** (-spec.margin_semitones / 12.0)
    centres = low_hz * 2.0 ** (np.arange(spec.stored_bins) / spec.bins_per_octave)
    filters = []
    for window, rate, own in (
        (spec.long_window, SAMPLE_RATE / DECIMATION, centres[centres < spec.split_hz]),
        (SHORT_WINDOW, float(SAMPLE_RATE), centres[centres >= spec.split_hz]),
    ):
        frequency = np.fft.rfftfreq(window, 1.0 / rate)
        spacing = frequency[1]
        width = np.maximum(own * (2.0 ** (0.5 / spec.bins_per_octave) - 1.0), 0.5 * spacing)
        weight = np.exp(-0.5 * np.square((frequency[:, None] - own[None]) / width[None]))
        weight[frequency < 20.0] = 0.0  # a constant offset is no note
        weight[weight < 1e-6] = 0.0  # tails of denormal numbers make matrix products five times slower
        filters.append((weight / np.maximum(weight.sum(0), 1e-9)).astype(np.float32))
    return filters[0], filters[1]


def _band_filters(bands: int) -> np.ndarray:
    """Return weights `(short FFT bins, bands)` of triangles equally spaced in mel from 40 to 7800 Hz."""
    lowest, highest = (2595.0 * float(np.log10(1.0 + hertz / 700.0)) for hertz in (40.0, 7800.0))
    edges_mel = np.linspace(lowest, highest, bands + 2)
    edges = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    frequency = np.fft.rfftfreq(SHORT_WINDOW, 1.0 / SAMPLE_RATE)[:, None]
    rise = (frequency - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[None, 2:] - frequency) / (edges[2:] - edges[1:-1])
    weight = np.clip(np.minimum(rise, fall), 0.0, None)
    return (weight / np.maximum(weight.sum(0), 1e-9)).astype(np.float32)


class Analysis(nn.Module):
    """Audio to decibels, batched; no weights to train.

    Args:
        spec: Which features.
    """

    low_pass: Tensor
    long_taper: Tensor
    short_taper: Tensor
    low_filters: Tensor
    joint_filters: Tensor

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        if spec.hop % DECIMATION:
            raise ValueError(f"hop is {spec.hop}; it must be a multiple of {DECIMATION}.")
        self.spec = spec
        low, high = _pitch_filters(spec)
        tapers = [np.hanning(size + 1)[:-1] for size in (spec.long_window, SHORT_WINDOW)]
        # Scaled so that a sine of amplitude 1 peaks at 0 dB in either analysis.
        tapers = [(taper * 2.0 / taper.sum()).astype(np.float32) for taper in tapers]
        for name, value in (
            ("low_pass", _low_pass()),
            ("long_taper", tapers[0]),
            ("short_taper", tapers[1]),
            ("low_filters", low),
            ("joint_filters", np.concatenate([high, _band_filters(spec.bands)], axis=1)),
        ):
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Return decibels `(N, rows, frames)` of mono `audio` `(N, S)` at 16 kHz.

        Audio shorter than one frame is padded with zeros at its end.
        """
        spec = self.spec
        if audio.shape[1] < spec.reach:
            audio = nn.functional.pad(audio, (0, spec.reach - audio.shape[1]))
        frames = spec.frames(audio.shape[1])
        # In pieces so that memory does not grow with the batch.
        step = max(1, _FRAMES_AT_ONCE // len(audio)) if frames > _FRAMES_AT_ONCE else frames
        rows = max(1, _FRAMES_AT_ONCE // max(step, 1))
        found = [
            torch.cat([self._frames(part, first, min(step, frames - first)) for first in range(0, frames, step)], dim=2)
            for part in audio.split(rows)
        ]
        return torch.cat(found) if found else audio.new_zeros(0, spec.rows, frames)

    def _frames(self, audio: Tensor, first: int, frames: int) -> Tensor:
        """Return decibels `(N, rows, frames)` of the frames from `first` on."""
        spec = self.spec
        audio = audio[:, first * spec.hop : (first + frames - 1) * spec.hop + spec.reach]
        slow = audio.unfold(1, len(self.low_pass), DECIMATION) @ self.low_pass
        long = slow.unfold(1, spec.long_window, spec.hop // DECIMATION)
        # The centre of long frame j lies (reach / 2) after its start; the short frame has the same centre.
        short = audio[:, (spec.reach - SHORT_WINDOW) // 2 :].unfold(1, SHORT_WINDOW, spec.hop)[:, :frames]
        low_power = _power(long * self.long_taper)
        high_power = _power(short * self.short_taper)
        rows = torch.cat([low_power @ self.low_filters, high_power @ self.joint_filters], dim=2)
        floor = 10.0 ** (FLOOR_DB / 10.0)
        return (10.0 * torch.log10(rows + floor)).transpose(1, 2).contiguous()


def _power(frames: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(frames)
    return spectrum.real.square() + spectrum.imag.square()


def pack(decibels: Tensor) -> np.ndarray:
    """Return decibels as uint8 in steps of 0.5 dB from `FLOOR_DB`, for keeping many songs in memory."""
    return ((decibels - FLOOR_DB) * 2.0).round().clamp(0, 255).to(torch.uint8).numpy()


def unpack(packed: Tensor) -> Tensor:
    """Return the decibels that `pack` stored."""
    return packed.float() * 0.5 + FLOOR_DB


@dataclass(frozen=True)
class Prepared:
    """What a network reads.

    Attributes:
        values: `(N, pitch_bins + bands, frames)`, about 0 to 1, independent of level.
        weight: `(N, frames)` in 0 to 1: how much each frame sounds, relative to its window.
    """

    values: Tensor
    weight: Tensor


#: Decibels below the window's level at which a pitch bin counts as silent, and at which a frame counts half.
DEPTH_DB = 60.0
QUIET_FRAME_DB = -25.0


def cut(decibels: Tensor, spec: FeatureSpec, semitones: int = 0) -> Tensor:
    """Return `(N, pitch_bins + bands, frames)` of stored decibels, transposed up by `semitones`."""
    if abs(semitones) > spec.margin_semitones:
        raise ValueError(f"semitones is {semitones}; at most {spec.margin_semitones} either way.")
    first = (spec.margin_semitones - semitones) * spec.bins_per_semitone
    pitch = decibels[:, first : first + spec.pitch_bins]
    return torch.cat([pitch, decibels[:, spec.stored_bins :]], dim=1)


def prepare(decibels: Tensor, spec: FeatureSpec) -> Prepared:
    """Make cut decibels `(N, pitch_bins + bands, frames)` independent of level.

    Everything is relative to the mean power of the window, so a gain changes nothing until the floor of
    `FLOOR_DB` is reached.
    """
    pitch, bands = decibels[:, : spec.pitch_bins], decibels[:, spec.pitch_bins :]
    # Bands cover the whole spectrum, so they serve drums and pitch alike.
    frame_power = torch.pow(10.0, bands / 10.0).sum(1)
    reference = 10.0 * torch.log10(frame_power.mean(1) + 10.0 ** (FLOOR_DB / 10.0))
    frame_db = 10.0 * torch.log10(frame_power + 10.0 ** (FLOOR_DB / 10.0))
    weight = torch.sigmoid((frame_db - reference[:, None] - QUIET_FRAME_DB) / 4.0)
    pitch = ((pitch - reference[:, None, None]) / DEPTH_DB + 1.0).clamp(0.0, 1.4)
    bands = ((bands - reference[:, None, None]) / DEPTH_DB + 1.0).clamp(0.0, 1.4)
    if spec.flux:
        rise = (bands[:, :, 1:] - bands[:, :, :-1]).clamp(min=0.0) * 3.0
        bands = nn.functional.pad(rise, (1, 0))
    return Prepared(values=torch.cat([pitch, bands], dim=1), weight=weight)
