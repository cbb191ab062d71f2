import numpy as np
import pytest

from jamgym import AccompanimentVectorEnv, EpisodeSource
from jamgym.benchmark.runner import TIMING_MEASURES, decode_played, play, score
from jamgym.errors import ConfigError, RewardError
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward
from jamgym_agents.baselines import RandomCodesPolicy, SilencePolicy, TruthPolicy

from .helpers import Match

LATENCY = {"name": "lognormal", "median_seconds": 0.2, "sigma": 0.5}


@pytest.fixture(scope="module")
def source():
    return EpisodeSource(ToyCorpus(songs=5, seconds=3.0), ToyCodec(), split="test", frames=22)


def make_env(source, rows=2, **settings):
    settings = {"t_f": -5, "k": 5, "reward": None, "autoreset_mode": "Disabled", **settings}
    return AccompanimentVectorEnv(rows, source=source, **settings)


def random_policy(source):
    return RandomCodesPolicy(codec=source.codec, k=5, seed=3)


@pytest.mark.parametrize("mode", ["Disabled", "SameStep", "NextStep"])
def test_each_episode_is_played_once_in_order(source, mode):
    episodes = source.fixed(5, seed=0)
    short = EpisodeSource(source.corpus, source.codec, split="test", frames=9).fixed(2, seed=1)
    mixed = [episodes[0], short[0], *episodes[1:], short[1]]
    done = []
    records = play(random_policy(source), make_env(source, 3, autoreset_mode=mode), mixed, done.append)
    assert [record.episode for record in records] == mixed
    assert sum(done) == len(mixed)
    for record in records:
        expected = random_policy(source).choose(record.episode)
        assert np.array_equal(record.played_codes, expected)


@pytest.mark.parametrize("mode", ["Disabled", "SameStep", "NextStep"])
@pytest.mark.parametrize("rule", [{"backlog": "skip"}, {"late_policy": "stall"}])
def test_rows_that_need_fewer_calls_wait_for_the_others(source, rule, mode):
    episodes = source.fixed(5, seed=0)
    settings = {"latency": LATENCY, "t_f": -1, "k": 2, **rule}

    def policy():
        return TruthPolicy(codec=source.codec, k=2)

    records = play(policy(), make_env(source, 5, autoreset_mode=mode, **settings), episodes, seed=4)
    assert [record.episode for record in records] == episodes
    assert len({len(record.log.call) for record in records}) > 1, "all rows end at once: the test shows nothing"
    for index, record in enumerate(records):
        alone = play(policy(), make_env(source, 1, **settings), [episodes[index]], seed=4 + index)[0]
        assert np.array_equal(record.played_codes, alone.played_codes)
        assert all(np.array_equal(value, getattr(alone.log, name)) for name, value in vars(record.log).items())


@pytest.mark.parametrize("late_policy", ["silence", "repeat"])
def test_score_equals_the_environments(source, late_policy):
    reward = ToyReward()
    settings = dict(latency=LATENCY, late_policy=late_policy)
    episodes = source.fixed(5, seed=0)
    # Two lengths, with 3 windows and with 1.
    episodes += EpisodeSource(source.corpus, source.codec, split="test", frames=9).fixed(2, seed=1)
    kept = play(random_policy(source), make_env(source, reward=reward, **settings), episodes)
    bare = play(random_policy(source), make_env(source, **settings), episodes)
    expected = np.array([record.score for record in kept])
    assert np.ptp(expected) > 0.0
    # With the audio that the environment streamed, and decoded anew.
    np.testing.assert_allclose(score(kept, [reward], source.codec)["toy"], expected, atol=1e-6)
    np.testing.assert_allclose(score(bare, [reward], source.codec)["toy"], expected, atol=1e-4)


def test_number_of_rows_changes_nothing(source):
    episodes = source.fixed(5, seed=0)
    few, many = (
        play(random_policy(source), make_env(source, rows, latency=LATENCY), episodes, seed=7) for rows in (2, 4)
    )
    assert any(record.lateness.any() for record in few)
    for a, b in zip(few, many, strict=True):
        assert np.array_equal(a.played_codes, b.played_codes) and np.array_equal(a.log.latency, b.log.latency)


def test_policies_meet_the_same_latencies(source):
    episodes = source.fixed(3, seed=0)
    env = make_env(source, latency=LATENCY)
    first = play(random_policy(source), env, episodes)
    second = play(SilencePolicy(codec=source.codec, k=5), env, episodes)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.log.latency, b.log.latency)


def test_truth_scores_highest_under_a_match_reward(source):
    episodes = source.fixed(4, seed=0)
    scores = [
        score(play(policy, make_env(source), episodes), [Match()], source.codec)["match"]
        for policy in (TruthPolicy(codec=source.codec, k=5), random_policy(source))
    ]
    assert (scores[0] > scores[1]).all()


def test_timing_measures(source):
    episodes = source.fixed(2, seed=0)
    # A budget of 5 frames and calls of 6: the first frame of the first chunk is late, then ever more.
    late = {"name": "constant", "seconds": 6 * 640 / 16_000}
    records = play(random_policy(source), make_env(source, latency=late), episodes)
    found = score(records, [], source.codec)
    assert set(found) == set(TIMING_MEASURES)
    lateness = np.concatenate([np.maximum(call + 1 - np.arange(5), 0) for call in range(5)])[:22] * 0.04
    for row in range(2):
        assert found["late_frames"][row] == pytest.approx(np.mean(lateness > 0))
        assert found["underruns"][row] == np.count_nonzero(lateness)
        assert found["lateness_p95_seconds"][row] == pytest.approx(np.percentile(lateness, 95))
    on_time = score(play(random_policy(source), make_env(source), episodes), [], source.codec)
    assert all((on_time[name] == 0).all() for name in TIMING_MEASURES)


def test_a_metric_that_fails_is_never_dropped(source):
    class Broken(ToyReward):
        name = "broken"

        def score(self, windows):
            scores = super().score(windows)
            scores[0] = np.nan
            return scores

    records = play(random_policy(source), make_env(source), source.fixed(2, seed=0))
    with pytest.raises(RewardError, match="broken"):
        score(records, [Broken()], source.codec)
    with pytest.raises(ConfigError, match="distinct"):
        score(records, [ToyReward(), ToyReward()], source.codec)
    with pytest.raises(ConfigError, match="no episodes"):
        play(random_policy(source), make_env(source), [])


def test_decoded_audio_is_the_codecs(source):
    records = play(random_policy(source), make_env(source), source.fixed(3, seed=0))
    for record, audio in zip(records, decode_played(records, source.codec), strict=True):
        np.testing.assert_allclose(audio, source.codec.decode(record.played_codes[None])[0], atol=1e-6)
