from pathlib import Path

import numpy as np
import pytest
import soundfile

from jamgym.audio import audio_info, read_audio, resample, within_full_scale, write_audio
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


def noise(frames=16000):
    return 0.1 * np.random.default_rng(0).normal(size=frames)


@pytest.mark.parametrize(("form", "suffix"), [("WAV", "wav"), ("WAVEX", "wav"), ("RF64", "wav"), ("AIFF", "aiff")])
def test_cut_wav_is_an_error_also_where_only_the_header_is_read(tmp_path, form, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(), 16000, format=form)
    whole = path.read_bytes()
    assert audio_info(path).frames == len(read_audio(path, 16000)) == 16000
    path.write_bytes(whole[: len(whole) // 4])
    for read in (audio_info, lambda path: read_audio(path, 16000)):
        with pytest.raises(
            AudioError, match=rf"a\.{suffix} is cut off: its header promises 320\d\d bytes .* but 79\d\d"
        ):
            read(path)


def test_a_few_bytes_that_were_counted_too_many_are_no_cut(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(), 16000)
    whole = path.read_bytes()
    for missing, cut in ((8, False), (64, False), (66, True)):
        path.write_bytes(whole[:-missing])
        if not cut:
            assert len(read_audio(path, 16000)) == 16000 - missing // 2
            continue
        with pytest.raises(AudioError, match="is cut off"):
            read_audio(path, 16000)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_the_size_that_a_pipe_writes_promises_nothing(tmp_path, size):
    soundfile.write(tmp_path / "a.wav", noise(), 16000)
    made = (tmp_path / "a.wav").read_bytes()
    at = made.index(b"data") + 4
    (tmp_path / "a.wav").write_bytes(made[:at] + size.to_bytes(4, "little") + made[at + 4 :])
    assert audio_info(tmp_path / "a.wav").frames == len(read_audio(tmp_path / "a.wav", 16000)) == 16000


def test_chunks_before_and_after_the_samples_are_passed_over(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(), 16000)
    made = (tmp_path / "a.wav").read_bytes()
    odd = b"note" + (3).to_bytes(4, "little") + b"abc\0"
    made = made[:12] + odd + made[12:] + odd
    (tmp_path / "a.wav").write_bytes(b"RIFF" + (len(made) - 8).to_bytes(4, "little") + made[8:])
    assert len(read_audio(tmp_path / "a.wav", 16000)) == 16000


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(100_000), 16000)
    made = bytearray((tmp_path / "a.flac").read_bytes())
    made[21] &= 0xF0  # the number of samples, as an encoder leaves it that writes to a pipe
    made[22:26] = bytes(4)
    (tmp_path / "b.flac").write_bytes(made)
    assert audio_info(tmp_path / "b.flac") == audio_info(tmp_path / "a.flac")
    assert np.array_equal(read_audio(tmp_path / "b.flac", 16000), read_audio(tmp_path / "a.flac", 16000))


def test_the_length_of_an_mp3_is_only_an_estimate(tmp_path):
    for name, level in (("low", 0.99), ("high", 0.0)):
        path = tmp_path / f"{name}.mp3"
        soundfile.write(path, noise(132_300), 44100, bitrate_mode="CONSTANT", compression_level=level)
    joined = tmp_path / "joined.mp3"
    joined.write_bytes((tmp_path / "low.mp3").read_bytes() + (tmp_path / "high.mp3").read_bytes())
    info = audio_info(joined)
    assert info.estimated and info.frames > 1_000_000  # from the bit rate at the beginning
    assert 260_000 < len(read_audio(joined, 44100)) < 280_000


def test_a_file_that_may_not_be_read_is_not_called_broken(tmp_path, monkeypatch):
    write_audio(tmp_path / "a.wav", tone(16000), 16000)

    def refused(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    for method in ("open", "is_dir"):  # the file itself, and a folder that it is in
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, refused)
            with pytest.raises(AudioError, match=r"a\.wav may not be read: Permission denied.*permission"):
                audio_info(tmp_path / "a.wav")


def test_info_reads_the_header(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((4410, 2)), 44100)
    info = audio_info(tmp_path / "a.wav")
    assert (info.frames, info.sample_rate, info.channels, info.seconds) == (4410, 44100, 2, 0.1)


def test_what_would_clip_is_turned_down_and_nothing_else():
    loud, soft = np.array([0.5, -2.0], dtype=np.float32), np.array([0.5, -1.0], dtype=np.float32)
    np.testing.assert_array_equal(within_full_scale(loud), np.array([0.25, -1.0], dtype=np.float32))
    np.testing.assert_array_equal(within_full_scale(soft), soft)
    assert within_full_scale(np.zeros(0, dtype=np.float32)).shape == (0,)
