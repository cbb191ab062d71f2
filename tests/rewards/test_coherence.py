import json
from importlib.resources import files

import numpy as np
import pytest
import torch

from jamgym.checkpoint import load_tensors, save_tensors
from jamgym.corpora.band import BandCorpus
from jamgym.corpus import make_pair
from jamgym.errors import CheckpointError, ConfigError, RewardError
from jamgym.reward import RewardModel, Windows, check_scores
from jamgym.testing import RewardConformance
from jamgym_rewards.coherence import CoherenceReward
from jamgym_rewards.discriminative import DiscriminativeReward
from jamgym_rewards.judge import JudgeReward
from jamgym_rewards.learned import Calibration, save_weights

RATE = 16000
REWARDS = [CoherenceReward, JudgeReward, DiscriminativeReward]


@pytest.fixture(params=REWARDS, ids=lambda r: r.name)
def reward(request):
    """An untrained network: what is tested with it has to hold for any weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return request.param(network=request.param.build(), calibration=Calibration(-0.5, 0.5))


def noise(count: int, seconds: float = 4.0, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, (count, round(seconds * RATE))).astype(np.float32)


def test_satisfies_the_protocol(reward):
    assert isinstance(reward, RewardModel)
    assert reward.min_window_seconds <= reward.window_seconds
    assert reward.needs == frozenset()


@pytest.mark.parametrize("seconds", [0.05, 0.3, 2.0, 2.71, 4.0])
def test_any_length_gives_one_score_a_window(reward, seconds):
    scores = reward.score(Windows(noise(3, seconds), noise(3, seconds, 1), RATE))
    check_scores(reward.name, scores, 3, "a test")
    assert scores.dtype == np.float32
    assert (scores >= reward.range[0]).all() and (scores <= reward.range[1]).all()


class TestCoherenceConforms(RewardConformance):
    def make(self) -> RewardModel:
        return CoherenceReward()


class TestJudgeConforms(RewardConformance):
    def make(self) -> RewardModel:
        return JudgeReward()


class TestDiscriminativeConforms(RewardConformance):
    def make(self) -> RewardModel:
        return DiscriminativeReward()


class TestHarmonicCoherenceConforms(RewardConformance):
    def make(self) -> RewardModel:
        return CoherenceReward(mode="harmonic")


def test_each_mode_hears_its_own_part():
    corpus, scores = BandCorpus(), {}
    for mode in ("both", "harmonic", "percussive"):
        reward, found = CoherenceReward(mode=mode), []
        for song_id in corpus.song_ids("validation")[:6]:
            song = corpus.load(song_id)
            target = next(stem for stem in song.stems if stem.instrument not in ("bass", "drums"))
            other = corpus.load_transposed(song_id, {target.name: 1}).stem(target.name).audio
            start, length, late = 4 * RATE, 4 * RATE, round(30.0 / song.truth.tempo_bpm * RATE)
            part = slice(start, start + length)
            heard = sum(stem.audio for stem in song.stems if stem is not target)[part]
            played = np.stack([target.audio[part], other[part], target.audio[start - late :][:length]])
            found.append(reward.score(Windows(np.repeat(heard[None], 3, axis=0), played, RATE)))
        scores[mode] = np.mean(found, axis=0)
    truth, semitone, half_beat = range(3)
    fall = {mode: score[truth] - score for mode, score in scores.items()}
    assert fall["both"][semitone] > 0.4 and fall["both"][half_beat] > 0.3
    assert fall["harmonic"][semitone] > 0.4 and fall["harmonic"][semitone] > 2 * fall["harmonic"][half_beat]
    assert fall["percussive"][half_beat] > 0.3 and fall["percussive"][half_beat] > 2 * fall["percussive"][semitone]


def test_a_mode_has_its_own_version_and_calibration(tmp_path):
    both, harmonic = CoherenceReward(), CoherenceReward(mode="harmonic")
    assert harmonic.version.endswith("-harmonic") and "harmonic" not in both.version
    assert harmonic.calibration != both.calibration and harmonic.calibration.random < harmonic.calibration.truth
    with pytest.raises(ConfigError, match="mode is 'loud'; it must be one of both, harmonic, percussive"):
        CoherenceReward(mode="loud")
    path = tmp_path / "old.safetensors"
    save_weights(path, "coherence", CoherenceReward.build(), Calibration())
    assert np.isfinite(CoherenceReward(path).calibration.truth)
    noted = tmp_path / "noted.safetensors"
    tensors, metadata = load_tensors(path)
    save_tensors(noted, tensors, {**metadata, "figures": "{}"})
    assert CoherenceReward(noted).version == CoherenceReward(path).version
    save_tensors(noted, tensors, {**metadata, "calibration": json.dumps({"random": 0.1, "truth": 1.0})})
    assert CoherenceReward(noted).version != CoherenceReward(path).version
    with pytest.raises(CheckpointError, match="has no 'calibration_percussive'.*calibrate_modes"):
        CoherenceReward(path, mode="percussive").score(Windows(noise(1), noise(1), RATE))


def test_no_windows_no_scores(reward):
    empty = np.zeros((0, RATE), dtype=np.float32)
    assert reward.score(Windows(empty, empty, RATE)).shape == (0,)


def test_a_batch_equals_its_rows(reward):
    heard, played = noise(5), noise(5, seed=1)
    batch = reward.score(Windows(heard, played, RATE))
    single = [reward.score(Windows(heard[i : i + 1], played[i : i + 1], RATE))[0] for i in range(5)]
    np.testing.assert_allclose(batch, single, atol=1e-4)
    np.testing.assert_array_equal(batch, reward.score(Windows(heard, played, RATE)))


def test_a_gain_within_the_open_gate_changes_nothing(reward):
    heard, played = noise(3), noise(3, seed=1)
    base = reward.score(Windows(heard, played, RATE))
    for gain in (0.2, 0.5, 2.0):
        np.testing.assert_allclose(reward.score(Windows(heard, played * np.float32(gain), RATE)), base, atol=2e-3)


@pytest.mark.parametrize(
    "pathological",
    [
        np.zeros((1, 64000)),
        np.full((1, 64000), 0.5),
        np.full((1, 64000), np.nan),
        np.full((1, 64000), np.inf),
        np.sign(np.sin(np.arange(64000)))[None] * 1e30,
        np.eye(1, 64000, 32000),
        np.full((1, 64000), 1e-30),
    ],
    ids=["silence", "offset", "nan", "inf", "clipped", "click", "denormal"],
)
def test_finite_whatever_comes(reward, pathological):
    audio = pathological.astype(np.float32)
    for heard, played in ((noise(1), audio), (audio, noise(1)), (audio, audio)):
        scores = reward.score(Windows(heard, played, RATE))
        check_scores(reward.name, scores, 1, "a test")


def test_the_gate_is_what_punishes_silence(reward):
    heard, silence = noise(2), np.zeros((2, 4 * RATE), dtype=np.float32)
    np.testing.assert_allclose(reward.score(Windows(heard, silence, RATE)), -0.5)
    whisper = noise(2, seed=1) * np.float32(0.001)
    np.testing.assert_allclose(reward.score(Windows(heard, whisper, RATE)), -0.5)
    open_reward = type(reward)(network=reward._network, calibration=reward.calibration, gates=None)
    # Without gates a whisper scores about as well as the same stem at full level.
    full = open_reward.score(Windows(heard, noise(2, seed=1), RATE))
    np.testing.assert_allclose(open_reward.score(Windows(heard, whisper, RATE)), full, atol=0.1)


def test_other_sample_rates_are_resampled(reward):
    import soxr

    heard, played = noise(1, level=0.05), noise(1, seed=1, level=0.05)
    up = [soxr.resample(side[0], RATE, 48000)[None].astype(np.float32) for side in (heard, played)]
    base = reward.raw(Windows(heard, played, RATE))
    np.testing.assert_allclose(reward.raw(Windows(up[0], up[1], 48000)), base, atol=0.05)


def test_wrong_shapes_say_so(reward):
    with pytest.raises(RewardError, match="shape"):
        reward.score(Windows(noise(2), noise(3), RATE))
    with pytest.raises(RewardError, match="shape"):
        reward.score(Windows(noise(2)[0], noise(2)[0], RATE))


def test_weights_come_back(reward, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, reward.name, reward._network, Calibration(0.1, 0.6))
    loaded = type(reward)(weights=path)
    windows = Windows(noise(2), noise(2, seed=1), RATE)
    np.testing.assert_allclose(loaded.raw(windows), reward.raw(windows), atol=0.01)
    assert loaded.calibration == Calibration(0.1, 0.6)
    assert loaded.version != reward.version


def test_weights_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, "judge", JudgeReward.build(), Calibration())
    with pytest.raises(CheckpointError, match="judge"):
        _ = CoherenceReward(weights=path).version
    save_tensors(path, {"a": torch.zeros(1)}, {"kind": "coherence"})
    with pytest.raises(CheckpointError, match="does not fit"):
        _ = CoherenceReward(weights=path).version


@pytest.mark.parametrize("kind", REWARDS, ids=lambda r: r.name)
def test_shipped_weights_tell_the_true_stem(kind):
    corpus = BandCorpus()
    pairs = []
    for song_id in corpus.song_ids("test")[:12]:
        song = corpus.load(song_id)
        target = next(stem.name for stem in song.stems if stem.instrument != "drums")
        pairs.append(make_pair(song, target))
    part = slice(8 * RATE, 12 * RATE)
    heard = np.stack([pair.heard[part] for pair in pairs])
    played = np.stack([pair.target[part] for pair in pairs])
    reward = kind()
    truth = reward.score(Windows(heard, played, RATE))
    stranger = reward.score(Windows(heard, np.roll(played, 1, axis=0), RATE))
    assert truth.mean() > stranger.mean() + 0.5
    assert (truth > stranger).mean() >= 0.75


@pytest.mark.parametrize("kind", REWARDS, ids=lambda r: r.name)
def test_shipped_weights_have_a_card_and_are_small(kind):
    assets = files("jamgym_rewards") / "assets"
    card = json.loads((assets / f"{kind.name}.json").read_text())
    assert card["model"] == kind.name
    assert {"data", "seed", "steps", "seconds", "figures", "command"} <= set(card)
    assert card["figures"]["mean/truth"] > card["figures"]["mean/random_stem"]
    assert len((assets / f"{kind.name}.safetensors").read_bytes()) < 5_000_000
