import numpy as np
import pytest
import soundfile

from jamgym import AccompanimentEnv, EpisodeSource
from jamgym.benchmark.file_scores import score_files
from jamgym.benchmark.plots import envelope, plot_scores, spectrogram
from jamgym.errors import AudioError, ConfigError, RewardError
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward

RATE = 16_000


def tone(seconds, rate=RATE, level=0.3):
    return (level * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def save(path, audio, rate=RATE):
    soundfile.write(str(path), audio, rate, subtype="FLOAT")
    return path


class Remembers(ToyReward):
    """Keeps its windows."""

    def score(self, windows):
        self.seen = [*getattr(self, "seen", []), windows]
        return super().score(windows)


def test_files_of_an_episode_have_its_score(tmp_path):
    source = EpisodeSource(ToyCorpus(songs=2, seconds=5.0), ToyCodec(), frames=103)
    env = AccompanimentEnv(source=source, reward=ToyReward(), t_f=-25, k=5)
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    over = False
    while not over:
        _, _, ended, cut, info = env.step(rng.integers(0, 16, 10))
        over = ended or cut
    heard = save(tmp_path / "heard.wav", env.episode.heard)
    played = save(tmp_path / "played.wav", env.final_record().played_audio)
    found = score_files(ToyReward(), heard, played)
    assert 0.0 < found.mean < 1.0 and found.mean == pytest.approx(info["episode_score"], abs=1e-6)
    assert found.ends.tolist() == pytest.approx([*np.arange(0.4, 4.1, 0.4), 4.12])
    assert found.starts.tolist() == pytest.approx(np.maximum(found.ends - 1.0, 0.0))


def test_any_rate_and_number_of_channels(tmp_path):
    clear = save(tmp_path / "a.wav", tone(3.0))
    stereo = save(tmp_path / "b.wav", np.stack([tone(3.0, 44_100)] * 2, axis=1), 44_100)
    reward = Remembers()
    found = score_files(reward, stereo, clear)
    assert found.heard.shape == (3 * RATE,) and found.sample_rate == RATE and found.mean == pytest.approx(1, abs=1e-3)
    assert {windows.sample_rate for windows in reward.seen} == {RATE}
    assert score_files(reward, stereo, clear, sample_rate=24_000).heard.shape == (3 * 24_000,)


def test_heard_played_and_target_keep_their_places(tmp_path):
    paths = [save(tmp_path / f"{level}.wav", tone(2.0, level=level)) for level in (0.1, 0.2, 0.4)]
    reward = Remembers(needs=("target",))
    score_files(reward, *paths)
    peaks = [np.abs(getattr(reward.seen[0], name)).max() for name in ("heard", "played", "target")]
    assert peaks == pytest.approx([0.1, 0.2, 0.4], abs=1e-3)
    with pytest.raises(ConfigError, match="--target FILE"):
        score_files(reward, *paths[:2])


def test_a_little_difference_in_length_is_cut_off_and_more_is_refused(tmp_path):
    long, little, short = (save(tmp_path / f"{s}.wav", tone(s)) for s in (3.0, 2.92, 2.85))
    assert score_files(ToyReward(), long, little).seconds == pytest.approx(2.92)
    assert score_files(ToyReward(), little, long).seconds == pytest.approx(2.92)
    for pair in ((long, short), (short, long)):
        with pytest.raises(AudioError, match=r"3\.00 s.*2\.85 s|2\.85 s.*3\.00 s"):
            score_files(ToyReward(), *pair)
    with pytest.raises(AudioError, match="target .*2.85"):
        score_files(ToyReward(needs=("target",)), long, long, short)


def test_what_cannot_be_scored_says_why(tmp_path):
    good = save(tmp_path / "good.wav", tone(2.0))
    (tmp_path / "bad.wav").write_bytes(b"RIFF" + bytes(100))
    for pair in ((good, tmp_path / "bad.wav"), (tmp_path / "bad.wav", good)):
        with pytest.raises(AudioError, match="bad.wav could not be read"):
            score_files(ToyReward(), *pair)
    with pytest.raises(ConfigError, match="'toy' needs truth .*'coherence'"):
        score_files(ToyReward(needs=("truth",)), good, good)
    brief = save(tmp_path / "brief.wav", tone(0.3))
    with pytest.raises(AudioError, match=r"too short: .*0\.30 s.*0\.4 s"):
        score_files(ToyReward(), brief, brief)
    with pytest.raises(ConfigError, match="sample_rate is 0"):
        score_files(ToyReward(), good, good, sample_rate=0)


def test_a_reward_that_raises_names_the_files(tmp_path):
    good = save(tmp_path / "good.wav", tone(2.0))

    class Raises(ToyReward):
        def score(self, windows):
            raise OSError("no licence")

    with pytest.raises(RewardError, match=r"'toy' raised OSError \(no licence\) for song '.*good.wav'"):
        score_files(Raises(), good, good)


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_the_picture(tmp_path, seconds):
    good = save(tmp_path / "good.wav", tone(seconds))
    path = plot_scores(score_files(ToyReward(), good, good), tmp_path / "scores.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_envelope_and_spectrogram_of_long_audio_stay_small():
    audio = tone(100.0)
    audio[777_777] = 0.9
    time, low, high = envelope(audio, RATE)
    assert len(time) == len(low) == len(high) <= 4001
    assert low.min() == pytest.approx(-0.3, abs=1e-3) and time[high.argmax()] == pytest.approx(777_777 / RATE, abs=0.05)
    assert len(spectrogram(audio, 400)) == 4001 and spectrogram(audio).shape[1] == 513
