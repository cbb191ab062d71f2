import numpy as np
import pytest
from scipy.signal import resample

from jamgym.corpora.sample_bank import Notes, SampleBank, sample_bank
from jamgym.corpus import INSTRUMENTS
from jamgym.errors import CorpusError

BANK = sample_bank()
PITCHED = [name for name in BANK.instruments if name != "drums"]


def cents_and_periodicity(audio, key, rate=16000, periods=6, up=4):
    """Measure by autocorrelation how far `audio` is from `key`, and whether that is its lowest period."""
    period = up * rate / (440.0 * 2 ** ((key - 69) / 12))
    part = audio[int(0.1 * rate) : int(1.1 * rate)]
    part = resample(part, up * len(part)) * np.hanning(up * len(part))
    power = np.abs(np.fft.rfft(part, 2 * len(part))) ** 2
    correlation = np.fft.irfft(power)[: len(part)] / power.mean()
    middle, reach = periods * period, periods * period * 0.055  # plus and minus 95 cents
    lags = np.arange(int(middle - reach), int(middle + reach) + 1)
    peak = lags[int(np.argmax(correlation[lags]))]
    left, top, right = correlation[peak - 1 : peak + 2]
    lag = peak + 0.5 * (left - right) / (left - 2 * top + right)
    cents = -1200 * np.log2(lag / middle)

    def around(where):
        nearby = np.arange(int(where * 0.985), int(where * 1.015) + 2)
        return correlation[nearby].max()

    # An organ adds octaves below (its 16-foot stop), which lengthens the period but is not the written note.
    return cents, max(around(times * period) for times in (1, 2, 4)) > around(period / 2)


@pytest.mark.parametrize("instrument", PITCHED)
def test_every_instrument_is_in_tune(instrument):
    low, high = BANK.key_range(instrument)
    keys = np.unique(np.linspace(low + 2, high - 2, 6).round().astype(int))
    measured = [cents_and_periodicity(BANK.note(instrument, int(key)), int(key)) for key in keys]
    cents = np.array([value for value, _ in measured])
    assert np.abs(cents).max() < 30, dict(zip(keys.tolist(), cents.round().tolist(), strict=True))
    assert all(lowest for _, lowest in measured), "sounds an octave too high"


def test_the_measurement_sees_wrong_tuning():
    time = np.arange(32000) / 16000
    for off in (-70, -40, 0, 40, 70):
        pitch = 440 * 2 ** ((60 - 69) / 12 + off / 1200)
        saw = sum(np.sin(2 * np.pi * h * pitch * time) / h for h in range(1, 8))
        assert abs(cents_and_periodicity(saw, 60)[0] - off) < 3
    octave_up = sum(np.sin(2 * np.pi * h * 2 * 261.6256 * time) / h for h in range(1, 8))
    assert not cents_and_periodicity(octave_up, 60)[1]


def test_every_instrument_class_is_known_and_most_are_there():
    classes = set(BANK.instruments.values())
    assert classes <= set(INSTRUMENTS) and len(classes) >= 10 and len(PITCHED) >= 12


def test_notes_sound_and_stay_below_full_scale():
    for instrument in PITCHED:
        low, high = BANK.key_range(instrument)
        for key in (low, (low + high) // 2, high):
            audio = BANK.note(instrument, key)
            assert audio.dtype == np.float32 and np.abs(audio).max() <= 1.0, (instrument, key)
            assert np.sqrt(np.mean(audio[:8000] ** 2)) > 0.005, (instrument, key)


def test_drums_are_there_and_differ():
    assert {"kick", "snare", "closed_hat", "open_hat", "low_tom", "high_tom", "crash", "ride"} <= set(BANK.drum_keys)
    spectra = {}
    for name, key in BANK.drum_keys.items():
        hit = BANK.note("drums", key)
        assert np.abs(hit).max() > 0.02, name
        assert np.abs(hit[:4000]).max() > 0.7 * np.abs(hit).max(), f"{name} does not start at once"
        spectrum = np.abs(np.fft.rfft(hit[:4000], 4000))
        spectra[name] = spectrum / np.linalg.norm(spectrum)
    names = list(spectra)
    assert all(spectra[a] @ spectra[b] < 0.98 for i, a in enumerate(names) for b in names[:i])
    centre = {name: (s**2 @ np.arange(len(s))) / (s**2).sum() for name, s in spectra.items()}
    assert centre["kick"] < centre["snare"] < centre["closed_hat"]


def notes(*rows):
    start, duration, key, velocity = (np.array(column) for column in zip(*rows, strict=True))
    return Notes(start.astype(float), duration.astype(float), key.astype(np.int64), velocity.astype(float))


def test_rendering_places_notes_and_adds_them_up():
    first, second = notes((0.5, 0.4, 60, 0.8)), notes((1.0, 0.4, 64, 0.5))
    both = BANK.render("grand_piano", notes((0.5, 0.4, 60, 0.8), (1.0, 0.4, 64, 0.5)), 32000)
    one, two = (BANK.render("grand_piano", part, 32000) for part in (first, second))
    assert both.shape == (32000,) and both.dtype == np.float32
    assert np.allclose(both, one + two, atol=1e-6)
    assert not one[:8000].any() and np.abs(one[8000:9600]).max() > 0.01
    assert not one[round((0.5 + 0.4 + 0.08) * 16000) + 1 :].any(), "the release has ended"
    assert np.allclose(BANK.render("grand_piano", notes((0.5, 0.4, 60, 0.4)), 32000), one / 2, atol=1e-6)


def test_what_sounds_after_the_end_is_cut():
    audio = BANK.render("grand_piano", notes((0.9, 2.0, 60, 1.0), (5.0, 1.0, 60, 1.0)), 16000)
    assert len(audio) == 16000 and np.abs(audio[14400:]).max() > 0.001


def test_unknown_instrument():
    with pytest.raises(CorpusError, match="Did you mean 'grand_piano'"):
        BANK.note("grandpiano", 60)


def test_the_bank_is_shared_and_reproducible():
    assert sample_bank() is BANK
    assert SampleBank().version == BANK.version
    assert np.array_equal(SampleBank().note("flute", 75), BANK.note("flute", 75))
