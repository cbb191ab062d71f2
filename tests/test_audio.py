import numpy as np
import pytest
import soundfile

from jamgym.audio import audio_info, read_audio, resample, write_audio
from jamgym.errors import AudioError


def tone(rate, hz=440.0, seconds=0.5):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_any_rate_becomes_the_same_tone(tmp_path, rate):
    write_audio(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav", 16000)
    assert audio.dtype == np.float32 and abs(len(audio) - 8000) <= 1
    middle = slice(1000, 7000)
    assert np.abs(audio[middle] - tone(16000)[middle]).max() < 5e-3


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_channels_are_averaged(tmp_path, channels, suffix):
    audio = np.stack([(c + 1) * 0.1 * tone(16000) for c in range(channels)], axis=1)
    soundfile.write(tmp_path / f"a.{suffix}", audio, 16000)
    assert np.allclose(read_audio(tmp_path / f"a.{suffix}", 16000), audio.mean(axis=1), atol=1e-3)


def test_resample_never_returns_nothing():
    assert resample(np.zeros(1, np.float32), 96000, 8000).shape == (1,)


def test_write_is_atomic_and_keeps_or_clips_peaks(tmp_path):
    loud = 2.0 * np.ones(100, np.float32)
    assert read_audio(write_audio(tmp_path / "new" / "f.wav", loud, 16000, "FLOAT"), 16000).max() == 2.0
    assert read_audio(write_audio(tmp_path / "p.wav", loud, 16000), 16000).max() <= 1.0
    before = (tmp_path / "p.wav").read_bytes()
    with pytest.raises(AudioError, match="NaN"):
        write_audio(tmp_path / "p.wav", np.full(10, np.nan), 16000)
    with pytest.raises(AudioError, match=r"shape \(2, 10\)"):
        write_audio(tmp_path / "p.wav", np.zeros((2, 10)), 16000)
    assert (tmp_path / "p.wav").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "p.wav"]


def test_broken_files_are_named(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("these are not samples")
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), 16000)
    nan = tone(16000)
    nan[160] = np.nan
    soundfile.write(tmp_path / "nan.wav", nan, 16000, subtype="FLOAT")
    for name, words in {
        "empty.wav": "0 bytes",
        "text.wav": "could not be read",
        "none.wav": "no samples",
        "nan.wav": "sample 160",
        "txt.wav": "Did you mean 'text.wav'",
        "gone/a.wav": "does not exist",
    }.items():
        with pytest.raises(AudioError, match=words) as caught:
            read_audio(tmp_path / name, 16000)
        assert name in str(caught.value)
    with pytest.raises(AudioError, match="is a folder"):
        read_audio(tmp_path, 16000)


def test_cut_flac_is_an_error(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).normal(size=16000) * 0.1, 16000)
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AudioError, match="a.flac"):
        read_audio(tmp_path / "a.flac", 16000)


def test_info_reads_the_header(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((4410, 2)), 44100)
    info = audio_info(tmp_path / "a.wav")
    assert (info.frames, info.sample_rate, info.channels, info.seconds) == (4410, 44100, 2, 0.1)
