import numpy as np
import pytest
import torch

from jamgym_rewards.features import FLOOR_DB, SAMPLE_RATE, Analysis, FeatureSpec, cut, pack, prepare, unpack

SPECS = [FeatureSpec(), FeatureSpec(bins_per_octave=12, hop=384, long_window=768, bands=24, flux=False)]


def sine(hertz: float, seconds: float = 2.0, amplitude: float = 0.3) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("hertz", [220.0, 440.0, 880.0, 1760.0, 2637.0])
def test_a_note_peaks_at_its_own_bin(spec, hertz):
    decibels = Analysis(spec)(torch.from_numpy(sine(hertz)[None]))
    profile = cut(decibels, spec)[0, : spec.pitch_bins].mean(1)
    expected = spec.bins_per_octave * np.log2(hertz / 32.7032)
    assert abs(int(profile.argmax()) - expected) <= 1.0
    # Amplitude 0.3 is -10.5 dB; the filter spreads a line over a few bins of the spectrum.
    assert -22.0 < float(profile.max()) < -9.0


@pytest.mark.parametrize("spec", SPECS)
def test_cutting_higher_equals_transposed_audio(spec):
    analysis = Analysis(spec)
    base = cut(analysis(torch.from_numpy(sine(440.0)[None])), spec, semitones=3)[0].mean(1)
    real = cut(analysis(torch.from_numpy(sine(440.0 * 2 ** (3 / 12))[None])), spec)[0].mean(1)
    assert abs(int(base[: spec.pitch_bins].argmax()) - int(real[: spec.pitch_bins].argmax())) <= 1


@pytest.mark.parametrize("spec", SPECS)
def test_a_window_of_features_equals_the_features_of_a_window(spec):
    audio = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, 3 * SAMPLE_RATE)).astype(np.float32))
    analysis = Analysis(spec)
    whole = analysis(audio)
    part = analysis(audio[:, 10 * spec.hop :])
    assert whole.shape == (2, spec.rows, spec.frames(audio.shape[1]))
    torch.testing.assert_close(whole[:, :, 10:], part, atol=1e-3, rtol=0)


def test_pieces_change_nothing(monkeypatch):
    audio = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (3, 2 * SAMPLE_RATE)).astype(np.float32))
    analysis = Analysis(FeatureSpec())
    whole = analysis(audio)
    monkeypatch.setattr("jamgym_rewards.features._FRAMES_AT_ONCE", 7)
    torch.testing.assert_close(analysis(audio), whole, atol=1e-3, rtol=0)


@pytest.mark.parametrize("spec", SPECS)
def test_prepared_features_do_not_see_level(spec):
    audio = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 2 * SAMPLE_RATE)).astype(np.float32))
    analysis = Analysis(spec)
    loud = prepare(cut(analysis(audio), spec), spec)
    quiet = prepare(cut(analysis(audio * 0.1), spec), spec)
    torch.testing.assert_close(loud.values, quiet.values, atol=1e-3, rtol=0)
    torch.testing.assert_close(loud.weight, quiet.weight, atol=1e-3, rtol=0)


def test_silent_moments_weigh_little():
    spec = FeatureSpec()
    audio = sine(440.0)
    audio[SAMPLE_RATE:] = 0.0
    weight = prepare(cut(Analysis(spec)(torch.from_numpy(audio[None])), spec), spec).weight[0]
    assert float(weight[: len(weight) // 3].min()) > 0.9
    assert float(weight[-len(weight) // 3 :].max()) < 0.01


def test_packing_keeps_half_a_decibel():
    values = torch.linspace(FLOOR_DB, 10.0, 999)[None]
    torch.testing.assert_close(unpack(torch.from_numpy(pack(values))), values, atol=0.26, rtol=0)


@pytest.mark.parametrize("samples", [1, 100, 4000])
def test_short_audio_is_padded(samples):
    decibels = Analysis(FeatureSpec())(torch.zeros(2, samples))
    assert decibels.shape[2] == 1
    torch.testing.assert_close(decibels, torch.full_like(decibels, FLOOR_DB))


def test_a_transposition_beyond_the_margin_is_refused():
    spec = FeatureSpec()
    with pytest.raises(ValueError, match="at most 9"):
        cut(torch.zeros(1, spec.rows, 4), spec, semitones=10)
