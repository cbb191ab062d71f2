import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from jamgym import AccompanimentEnv, AccompanimentVectorEnv, EpisodeSource
from jamgym.errors import ActionError
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward

SOURCE = EpisodeSource(ToyCorpus(songs=3, seconds=3.0), ToyCodec(), frames=22)
HOP = 640


def audio_env(**settings):
    settings = {"t_f": -5, "k": 5, "reward": ToyReward(), **settings}
    return AccompanimentEnv(source=SOURCE, action="audio", **settings)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_checkers_and_space():
    env = audio_env()
    assert env.action_space.shape == (5 * HOP,) and env.action_space.dtype == np.float32
    check_env(env, skip_render_check=True)
    sb3_check_env(audio_env())


def test_audio_that_is_played_is_what_the_codec_makes_of_the_whole_stream():
    env = audio_env()
    env.reset(seed=0)
    target = env.episode.target
    padded = np.pad(target, (0, 3 * HOP))
    for call in range(5):
        env.step(padded[call * 5 * HOP : (call + 1) * 5 * HOP])
    codes = env.codec.encode(target[None])[0]
    assert np.array_equal(env.played_codes(), codes)
    assert np.abs(env.played_audio() - env.codec.decode(codes[None])[0]).max() < 1e-6


def test_a_new_episode_starts_a_new_stream():
    # The level of a frame rings into the next one, so a loud end would be heard in a quiet beginning.
    loud, quiet = (np.full(5 * HOP, level, dtype=np.float32) for level in (0.9, 0.03))
    env = audio_env()
    env.reset(seed=0)
    first = env.step(quiet)[0]["played"]
    env.step(loud)
    assert not np.array_equal(env.step(quiet)[0]["played"], first)
    env.step(loud)
    env.reset(seed=0)
    assert np.array_equal(env.step(quiet)[0]["played"], first)


def test_rows_of_different_k_take_their_own_samples():
    env = AccompanimentVectorEnv(6, source=SOURCE, action="audio", reward=None, t_f=-5, k=[2, 5])
    env.reset(seed=0)
    sizes = env.simulation.clock.k.copy()
    assert set(sizes.tolist()) == {2, 5}
    rng = np.random.default_rng(0)
    sent = [[] for _ in range(6)]
    for _ in range(3):
        audio = rng.uniform(-1, 1, (6, 5 * HOP)).astype(np.float32)
        for row in range(6):
            sent[row].append(audio[row, : sizes[row] * HOP])
        env.step(audio)
    for row in range(6):
        codes = env.codec.encode(np.concatenate(sent[row])[None])[0]
        assert np.array_equal(env.played_codes(row), codes)


def test_the_encoders_lookahead_is_due_earlier():
    codec = ToyCodec()
    codec.lookahead_samples = 300
    source = EpisodeSource(ToyCorpus(songs=3, seconds=3.0), codec, frames=22)
    timings = [AccompanimentEnv(source=source, reward=None, t_f=-5, action=a).timing for a in ("tokens", "audio")]
    assert [(timing.d_in, timing.d_out) for timing in timings] == [(300, 0), (300, 300)]


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (np.zeros(5 * HOP - 1, dtype=np.float32), "shape"),
        (np.zeros(5 * HOP, dtype=np.int64), "dtype int64"),
        (np.full(5 * HOP, np.nan, dtype=np.float32), "NaN"),
        (np.full(5 * HOP, np.inf, dtype=np.float32), "infinite"),
        (np.full(5 * HOP, 1.5, dtype=np.float32), "1.5"),
        (["a"] * (5 * HOP), "dtype"),
    ],
)
def test_bad_audio_changes_nothing(action, match):
    env, twin = audio_env(), audio_env()
    good = np.random.default_rng(0).uniform(-1, 1, 5 * HOP).astype(np.float32)
    for e in (env, twin):
        e.reset(seed=0)
        e.step(good)
    with pytest.raises(ActionError, match=match):
        env.step(action)
    for _ in range(3):
        one, two = env.step(good), twin.step(good)
        assert one[1:] == two[1:] and np.array_equal(one[0]["played"], two[0]["played"])
