import numpy as np
import pytest

from jamgym import EpisodeSource
from jamgym.errors import ActionError, ConfigError, CorpusError
from jamgym.policy import Policy
from jamgym.registry import policies
from jamgym.testing import PolicyConformance, ToyCodec, ToyCorpus
from jamgym_agents.baselines import RandomCodesPolicy, RandomStemPolicy, SilencePolicy, TruthPolicy

ALL = [SilencePolicy, RandomCodesPolicy, RandomStemPolicy, TruthPolicy]


def source(songs=3, frames=22, **kwargs):
    return EpisodeSource(ToyCorpus(songs=songs, seconds=3.0), ToyCodec(), frames=frames, **kwargs)


def played(policy, episodes, k=5):
    """Return the codes `(N, calls * k, Q)` that the policy emits."""
    policy.reset(np.ones(len(episodes), dtype=bool), episodes)
    calls = -(-max(episode.frames for episode in episodes) // k)
    chunks = [policy.act({"frame": np.full((len(episodes), 1), call * k)}) for call in range(calls)]
    return np.concatenate(chunks, axis=1)


@pytest.mark.parametrize("policy_class", ALL)
class TestEveryBaseline:
    def test_is_a_policy_under_its_registry_name(self, policy_class):
        policy = policy_class(codec=ToyCodec(), k=5, source=source(), seed=0)
        assert isinstance(policy, Policy)
        assert policies.resolve(policy.name) is policy_class

    def test_pads_with_silence_beyond_the_end(self, policy_class):
        songs = source()
        codec = songs.codec
        out = played(policy_class(codec=codec, k=5, source=songs), songs.fixed(2, seed=0))
        assert out.shape == (2, 25, codec.num_codebooks) and out.dtype == np.int16
        assert (out[:, 22:] == codec.silence_codes).all()

    def test_an_episode_does_not_depend_on_its_batch(self, policy_class):
        songs = source()
        episodes = songs.fixed(3, seed=0)
        together = played(policy_class(codec=songs.codec, k=5, source=songs, seed=1), episodes)
        alone = played(policy_class(codec=songs.codec, k=5, source=songs, seed=1), episodes[2:])
        assert np.array_equal(together[2], alone[0])

    def test_partial_reset_keeps_the_other_rows(self, policy_class):
        songs = source()
        episodes = songs.fixed(3, seed=0)
        policy = policy_class(codec=songs.codec, k=5, source=songs)
        before = played(policy, episodes[:2])
        policy.reset(np.array([True, False]), [episodes[2], episodes[2]])
        after = policy.act({"frame": np.full((2, 1), 5)})
        assert np.array_equal(after[1], before[1, 5:10])

    def test_act_needs_reset(self, policy_class):
        with pytest.raises(ActionError, match="reset"):
            policy_class(codec=ToyCodec(), k=5, source=source()).act({"frame": np.zeros((2, 1))})


def conformance(policy_class):
    class Suite(PolicyConformance):
        def make(self, env):
            return policy_class(codec=env.codec, k=env.timing.k, source=env.source, seed=0)

    return Suite


TestSilenceConformance = conformance(SilencePolicy)
TestRandomCodesConformance = conformance(RandomCodesPolicy)
TestRandomStemConformance = conformance(RandomStemPolicy)
TestTruthConformance = conformance(TruthPolicy)


def test_truth_and_silence_play_what_they_say():
    songs = source()
    episodes = songs.fixed(2, seed=0)
    truth = played(TruthPolicy(codec=songs.codec, k=5), episodes)
    for row, episode in enumerate(episodes):
        assert np.array_equal(truth[row, :22], episode.target_codes)
    assert (played(SilencePolicy(codec=songs.codec, k=5), episodes) == songs.codec.silence_codes).all()


def test_random_codes_follow_the_seed():
    songs = source()
    episodes = songs.fixed(2, seed=0)
    one, again, other = (played(RandomCodesPolicy(codec=songs.codec, k=5, seed=seed), episodes) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])


def test_random_stem_is_never_the_own_song_and_of_the_same_class():
    songs = source(songs=2)
    for seed in range(20):
        policy = RandomStemPolicy(codec=songs.codec, k=5, source=songs, seed=seed)
        for episode in songs.fixed(4, seed=seed):
            other = policy.draw(episode)
            assert other.song_id != episode.song_id
            assert other.instrument == episode.instrument


def test_random_stem_takes_another_class_where_there_is_none():
    songs = source(instruments=["bass"])
    episode = source(instruments=["piano"]).fixed(1, seed=0)[0]
    other = RandomStemPolicy(codec=songs.codec, k=5, source=songs).draw(episode)
    assert other.song_id != episode.song_id and other.target_name == "bass"


def test_a_short_stem_starts_again():
    short = source(frames=10)
    episode = source(frames=22).fixed(1, seed=0)[0]
    out = RandomStemPolicy(codec=short.codec, k=5, source=short).choose(episode)
    assert len(out) == 22 and np.array_equal(out[:10], out[10:20]) and np.array_equal(out[:2], out[20:])


def test_random_stem_needs_other_songs():
    with pytest.raises(ConfigError, match="source"):
        RandomStemPolicy(codec=ToyCodec(), k=5)
    lonely = source(songs=1)
    with pytest.raises(CorpusError, match="leave the policy out"):
        RandomStemPolicy(codec=lonely.codec, k=5, source=lonely).choose(lonely.fixed(1, seed=0)[0])
