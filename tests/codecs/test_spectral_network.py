import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from jamgym.codecs.spectral_network import (
    BASS_WINDOW,
    LOWEST_TONE,
    SYNTHESIS_WINDOW,
    TONES_PER_OCTAVE,
    OscillatorBank,
    SpectralConfig,
    SpectralNetwork,
    synthesis_window,
    valid_hops,
)
from jamgym.errors import ConfigError

TINY = SpectralConfig(
    num_codebooks=2,
    cardinality=64,
    latent_dim=8,
    channels=24,
    encoder_blocks=1,
    decoder_blocks=1,
    fine_channels=16,
    fine_blocks=1,
    kernel=3,
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = SpectralNetwork(TINY).eval().requires_grad_(False)
    made.decoder.levels.bias.fill_(-3.0)  # let the tones sound
    return made


def test_overlapping_windows_sum_to_one():
    window = synthesis_window(160)
    assert len(window) == SYNTHESIS_WINDOW and window.min() >= 0
    summed = torch.zeros(160 * 20 + SYNTHESIS_WINDOW)
    for piece in range(20):
        summed[piece * 160 : piece * 160 + SYNTHESIS_WINDOW] += window
    inner = summed[SYNTHESIS_WINDOW : 160 * 20]
    assert torch.allclose(inner, torch.ones_like(inner), atol=1e-5)


def test_oscillators_equal_a_direct_sum_of_sines():
    torch.manual_seed(0)
    rate, step, count = 16000, 160, 7
    bank = OscillatorBank(rate, step)
    levels = torch.rand(2, count, bank.tones) * 0.1
    before, first = torch.rand(2, bank.tones) * 0.1, torch.tensor([0.0, 100_000.0], dtype=torch.float64)
    audio = bank(levels, before, first).numpy()
    frequency = LOWEST_TONE * 2.0 ** (np.arange(bank.tones) / TONES_PER_OCTAVE)
    offset = np.arange(bank.tones) * 0.618034
    glide = (np.arange(step) + 1) / step
    for row in range(2):
        time = np.arange(count * step) + int(first[row]) * step
        waves = np.sin(2 * np.pi * (frequency[:, None] * time / rate + offset[:, None]))
        ends = np.concatenate([before[row][None].numpy(), levels[row].numpy()])
        amplitude = np.concatenate([a[:, None] * (1 - glide) + b[:, None] * glide for a, b in pairwise(ends)], 1)
        assert np.abs((waves * amplitude).sum(0) - audio[row]).max() < 1e-3
    assert math.isclose(frequency[TONES_PER_OCTAVE], 2 * LOWEST_TONE)


def test_a_steady_tone_stays_in_tune_across_frames(network):
    bank = network.decoder.bank
    levels = torch.zeros(1, 400, bank.tones)
    levels[..., 86] = 0.3
    audio = bank(levels, levels[:, 0], torch.zeros(1, dtype=torch.float64))[0].numpy()
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 1 << 18))
    heard = spectrum.argmax() * 16000 / (1 << 18)
    assert abs(1200 * np.log2(heard / (LOWEST_TONE * 2 ** (86 / 24)))) < 2


def test_encoder_windows_end_with_the_frame(network):
    """An impulse on a frame's last sample changes that frame's spectra, one sample later it does not."""
    hop, frames = TINY.hop, 6
    quiet, past = torch.zeros(1, frames * hop), torch.zeros(1, BASS_WINDOW - hop)
    silent, _ = network.encoder.spectra(quiet, past)
    for sample, first_changed in ((3 * hop - 40, 2), (3 * hop, 3)):
        loud = quiet.clone()
        loud[0, sample : sample + 20] = 1.0
        changed = (network.encoder.spectra(loud, past)[0] != silent).any(2)[0].nonzero()
        assert int(changed.min()) == first_changed


@pytest.mark.parametrize("frames", [1, 9])
def test_streams_of_random_chunks_equal_the_whole(network, frames):
    rng = np.random.default_rng(frames)
    total = 30 * frames // 2
    audio = torch.from_numpy(rng.normal(0, 0.1, (2, total * TINY.hop)).astype(np.float32))
    latents, _ = network.encoder(audio)
    whole, _ = network.decoder(latents)
    assert whole.abs().max() > 1e-3
    encoded, decoded, encoder_state, decoder_state, position = [], [], None, None, 0
    while position < total:
        size = int(rng.integers(1, frames + 1))
        part, encoder_state = network.encoder(
            audio[:, position * TINY.hop : (position + size) * TINY.hop], encoder_state
        )
        sound, decoder_state = network.decoder(latents[:, position : position + size], decoder_state)
        encoded.append(part)
        decoded.append(sound)
        position += size
    assert torch.allclose(torch.cat(encoded, 1), latents, atol=1e-4)
    assert (torch.cat(decoded, 1) - whole).abs().max() < 1e-4


def test_forward_reconstructs_the_shape_and_reaches_every_weight():
    torch.manual_seed(0)
    network = SpectralNetwork(TINY)
    made = network(torch.randn(2, 10 * TINY.hop) * 0.1)
    assert made.audio.shape == (2, 10 * TINY.hop) and made.live.shape == (2,)
    assert made.levels.shape == (2, 40, network.decoder.bank.tones)
    (made.audio.square().mean() + made.commitment).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("hop", valid_hops())
def test_a_valid_hop_makes_a_network_whose_sound_is_whole_frames_of_finite_numbers(hop):
    torch.manual_seed(0)
    made = SpectralNetwork(replace(TINY, hop=hop)).eval().requires_grad_(False)
    latents, _ = made.encoder(torch.randn(1, 5 * hop) * 0.1)
    audio, _ = made.decoder(latents)
    assert latents.shape[1] == 5 and audio.shape == (1, 5 * hop) and torch.isfinite(audio).all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hop", 600, r"hop is 600; .*640 samples .* the nearest is 640"),
        ("hop", 2560, r"hop is 2560; .* the nearest is 1280"),
        ("hop", 0, "hop is 0"),
        ("sample_rate", 8000, "sample_rate is 8000; it must be at least 12000"),
        ("num_codebooks", 0, "num_codebooks is 0; it must be at least 1"),
        ("cardinality", 1, "cardinality is 1; it must be at least 2"),
        ("channels", 0, "channels is 0"),
        ("fine_blocks", -1, "fine_blocks is -1"),
        ("kernel", 1, "kernel is 1; it must be at least 2"),
    ],
)
def test_sizes_that_no_network_can_have_are_refused(name, value, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **{name: value})


def test_a_hop_whose_windows_do_not_overlap_would_divide_by_zero():
    assert not torch.isfinite(synthesis_window(SYNTHESIS_WINDOW)).all() and 4 * SYNTHESIS_WINDOW not in valid_hops()
