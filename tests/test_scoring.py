import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jamgym import AccompanimentEnv, AccompanimentVectorEnv, EpisodeSource
from jamgym.errors import ConfigError, RewardError
from jamgym.scoring import EpisodeScorer, plan_windows, score_windows
from jamgym.testing import (
    CodecConformance,
    CorpusConformance,
    RewardConformance,
    ToyCodec,
    ToyCorpus,
    ToyReward,
)

CODEC = ToyCodec()
SOURCE = EpisodeSource(ToyCorpus(songs=2, seconds=5.0), CODEC, frames=103)


class TestToyCodec(CodecConformance):
    def make(self):
        return ToyCodec()


class TestToyCodecOfFour(CodecConformance):
    def make(self):
        return ToyCodec(num_codebooks=4, cardinality=8)


class TestToyCorpus(CorpusConformance):
    def make(self):
        return ToyCorpus(songs=2, seconds=2.0)


class TestToyReward(RewardConformance):
    def make(self):
        return ToyReward(needs=("target", "truth"))


def play(env, codes):
    """Play `(T, Q)` codes and return the rewards."""
    k = env.timing.k
    env_codes = np.zeros((env.timing.num_calls * k, 2), dtype=int)
    env_codes[: len(codes)] = codes[: len(env_codes)]
    return [env.step(env_codes[i * k : (i + 1) * k])[1] for i in range(env.simulation.calls[0])]


@settings(max_examples=25, deadline=None)
@given(
    k=st.sampled_from([1, 3, 5, 25]),
    start=st.integers(0, 124),
    window=st.floats(0.1, 3.0),
    hop=st.floats(0.04, 2.0),
    seed=st.integers(0, 99),
)
def test_rewards_sum_to_the_mean_over_the_windows_of_the_whole(k, start, window, hop, seed):
    reward = ToyReward(window_seconds=window, hop_seconds=hop, min_window_seconds=min(window, 0.3))
    episode = SOURCE.crop("train-0000", "piano", start)
    env = AccompanimentEnv(source=SOURCE, reward=reward, t_f=-25, k=k)
    env.reset(seed=0, options={"episode": episode})
    codes = np.random.default_rng(seed).integers(0, 16, (episode.frames, 2)).astype(np.int16)
    rewards = play(env, codes)
    plan = plan_windows(reward, CODEC, episode.frames)
    audio = CODEC.decode(codes[None])[0]
    whole = score_windows(reward, CODEC, [episode] * len(plan), [audio] * len(plan), plan.starts, plan.ends)
    assert sum(rewards) == pytest.approx(whole.mean(dtype=float), abs=1e-6)
    assert env.final_record().score == pytest.approx(sum(rewards))
    assert np.array_equal(env.final_record().played_audio, audio)
    for call, value in enumerate(rewards):
        due = whole[plan.due(call * k, min((call + 1) * k, episode.frames))]
        assert value == pytest.approx(due.sum(dtype=float) / len(plan), abs=1e-6)


@pytest.mark.parametrize("good", [2, 9, 20])
def test_one_good_chunk_raises_only_the_rewards_of_its_own_windows(good):
    reward = ToyReward(window_seconds=1.0, hop_seconds=0.4, min_window_seconds=0.4)
    env = AccompanimentEnv(source=SOURCE, reward=reward, t_f=-25, k=5)
    episode = SOURCE.crop("train-0000", "bass", 0)
    codes = np.zeros((episode.frames, 2), dtype=int)
    codes[5 * good : 5 * good + 5] = [14, 3]
    env.reset(options={"episode": episode})
    rewards = np.array(play(env, codes))
    plan = plan_windows(reward, CODEC, episode.frames)
    # A frame rings into the next one, so the chunk is heard one frame beyond its end.
    touched = (plan.starts < 5 * good + 6) & (plan.ends > 5 * good)
    calls = {int(end - 1) // 5 for end in plan.ends[touched]}
    assert {int(call) for call in np.flatnonzero(rewards)} == calls and calls
    assert min(calls) >= good and max(calls) <= good + 6


def test_only_what_was_played_is_scored():
    late = {"name": "constant", "seconds": 3.0}
    env = AccompanimentEnv(source=SOURCE, reward=ToyReward(), t_f=-25, k=5, latency=late)
    env.reset(seed=0)
    assert sum(play(env, np.full((103, 2), 9))) == 0.0
    assert not env.final_record().played_audio.any()


class Spy(ToyReward):
    """Keeps what it was given."""

    def score(self, windows):
        self.seen.append(windows)
        return super().score(windows)


def test_windows_hold_their_own_part_of_each_stream():
    spy = Spy(window_seconds=1.0, hop_seconds=0.8, min_window_seconds=0.4, needs=("target", "truth"))
    spy.seen = []
    env = AccompanimentVectorEnv(3, source=SOURCE, reward=spy, k=5)
    env.reset(seed=0)
    episodes = env.episodes
    codes = np.random.default_rng(0).integers(0, 16, (21, 3, 10))
    for actions in codes:
        env.step(actions)
    plan = plan_windows(spy, CODEC, 103)
    assert len(spy.seen) == len(plan) and all(len(windows.heard) == 3 for windows in spy.seen)
    for windows, a, b in zip(spy.seen, plan.starts, plan.ends, strict=True):
        part = slice(a * 640, b * 640)
        for row, episode in enumerate(episodes):
            assert np.array_equal(windows.heard[row], episode.heard[part])
            assert np.array_equal(windows.target[row], episode.target[part])
            assert np.array_equal(windows.played[row], env.final_record(row).played_audio[part])
            crop = episode.truth.crop(a / 25, b / 25)
            assert np.array_equal(windows.truth[row].beats, crop.beats)
    spy.needs = frozenset()
    env.reset(seed=0)
    for actions in codes[:6]:
        env.step(actions)
    assert spy.seen[-1].target is None and spy.seen[-1].truth is None


def test_a_row_begins_with_a_fresh_decoder():
    scorer = EpisodeScorer(ToyReward(), CODEC, rows=2, frames=10)
    episodes = [SOURCE.crop("train-0000", "bass", 0)] * 2
    scorer.grow(103)
    scorer.start(np.arange(2), episodes)
    codes = np.zeros((2, 10, 2), dtype=np.int16)
    codes[:, :5] = 12
    status = np.ones((2, 10), dtype=np.int8)
    scorer.advance(codes, status, np.array([0, 0]), np.array([5, 5]))
    scorer.start(np.array([1]), episodes[:1])
    codes[1] = 0
    scorer.advance(codes, status, np.array([5, 0]), np.array([10, 5]))
    assert scorer.audio(0, 10)[5 * 640 : 6 * 640].any()
    assert not scorer.audio(1, 5).any()


class Broken(ToyReward):
    """Fails on the second of two songs."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong

    def score(self, windows):
        return self.wrong(super().score(windows))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: np.full_like(s, np.nan),
        lambda s: s + np.float32(np.inf),
        lambda s: s[:-1],
        lambda s: 0.5,
        lambda s: None,
        lambda s: ["loud"] * len(s),
        lambda s: {"score": s},
        lambda s: torch.from_numpy(s).requires_grad_(),
    ],
)
def test_a_broken_reward_names_song_and_window(wrong):
    env = AccompanimentEnv(source=SOURCE, reward=Broken(wrong), k=25)
    env.reset(options={"episode": SOURCE.crop("train-0001", "piano", 0)})
    with pytest.raises(RewardError, match=r"'toy'.*song 'train-0001' target 'piano' window of frames 0-"):
        env.step(np.zeros(50, dtype=int))


def fail(scores):
    raise KeyError("tempo")


@pytest.mark.parametrize("vector", [False, True])
def test_a_reward_that_raises_names_reward_songs_and_windows_and_keeps_the_cause(vector):
    setting = dict(source=SOURCE, reward=Broken(fail), k=25)
    env = AccompanimentVectorEnv(2, **setting) if vector else AccompanimentEnv(**setting)
    env.reset(seed=1)
    with pytest.raises(RewardError, match=r"Reward 'toy' raised KeyError \('tempo'\) for song") as caught:
        env.step(np.zeros((2, 50) if vector else 50, dtype=int))
    assert str(caught.value).count("song ") == (2 if vector else 1)
    for episode in env.episodes if vector else [env.episode]:
        named = f"song {episode.song_id!r} target {episode.target_name!r} window of frames 0-10"
        assert named in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError) and caught.value.__cause__.args == ("tempo",)


def test_an_error_of_the_reward_itself_is_one_error_with_the_song():
    def complain(scores):
        raise RewardError("this window has no truth")

    env = AccompanimentEnv(source=SOURCE, reward=Broken(complain), k=25)
    env.reset(options={"episode": SOURCE.crop("train-0001", "piano", 0)})
    with pytest.raises(RewardError, match="this window has no truth.*song 'train-0001' target 'piano'"):
        env.step(np.zeros(50, dtype=int))


def test_only_the_windows_that_were_scored_together_are_named_and_only_when_needed(monkeypatch):
    monkeypatch.setattr("jamgym.scoring._name_windows", lambda *_: pytest.fail("names were built for nothing"))
    env = AccompanimentEnv(source=SOURCE, reward=ToyReward(), k=25)
    env.reset(seed=0)
    env.step(np.zeros(50, dtype=int))
    monkeypatch.undo()
    fails_later = Broken(lambda scores: scores if fails_later.before else fail(scores))
    fails_later.before = True
    env = AccompanimentEnv(source=SOURCE, reward=fails_later, k=50)
    env.reset(seed=0)
    env.step(np.zeros(100, dtype=int))
    fails_later.before = False
    with pytest.raises(RewardError) as caught:
        env.step(np.zeros(100, dtype=int))
    assert "frames 35-60" in str(caught.value) and "frames 0-" not in str(caught.value)


def test_a_stop_by_the_user_is_no_error_of_the_reward():
    def stop(scores):
        raise KeyboardInterrupt

    env = AccompanimentEnv(source=SOURCE, reward=Broken(stop), k=25)
    env.reset(seed=0)
    with pytest.raises(KeyboardInterrupt):
        env.step(np.zeros(50, dtype=int))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hop_seconds": 0.0}, "hop_seconds"),
        ({"window_seconds": float("nan")}, "window_seconds"),
        ({"window_seconds": float("inf")}, "window_seconds of reward .* is inf; it must be above 0, and finite"),
        ({"needs": ("chords",)}, "chords"),
    ],
)
def test_impossible_rewards_are_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        AccompanimentEnv(source=SOURCE, reward=ToyReward(**change))


def test_without_reward_audio_is_decoded_on_demand():
    env = AccompanimentEnv(source=SOURCE, reward=None, k=5)
    env.reset(seed=0)
    assert env.played_audio().shape == (0,)
    env.step(np.full(10, 7))
    assert np.array_equal(env.played_audio(), CODEC.decode(np.full((1, 5, 2), 7, dtype=np.int16))[0])
