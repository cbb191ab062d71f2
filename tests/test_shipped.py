"""What jamgym promises of the weights that it ships."""

import dataclasses
import math

import numpy as np
import pytest

from jamgym.benchmark.runner import decode_played, play, score_metric
from jamgym.codecs.spectral import SpectralCodec
from jamgym.commands.demo import PITCHED
from jamgym.corpora.band import BandCorpus
from jamgym.episode import EpisodeSource
from jamgym.registry import rewards
from jamgym.specs import create_from_spec
from jamgym.vector_env import AccompanimentVectorEnv
from jamgym_agents.checkpoint import load_decoder
from jamgym_agents.decoder_policy import DecoderPolicy
from jamgym_agents.mle.input_use import input_use
from jamgym_agents.mle.token_cache import load_tokens

FRAMES = 62  # not a multiple of any k > 1 below, so the last chunk is cut


@pytest.fixture(scope="module")
def codec():
    return SpectralCodec()


@pytest.fixture(scope="module")
def decoder(codec):
    return load_decoder(None, codec)


@pytest.fixture(scope="module")
def episode(codec):
    source = EpisodeSource(BandCorpus(songs=20), codec, "test", frames=FRAMES)
    return source, source.fixed(1, seed=3)[0]


def _play(source, episode, decoder, codec, t_f, k):
    """Return the observations and actions of one episode."""
    env = AccompanimentVectorEnv(
        1, source=source, autoreset_mode="Disabled", reward=None, t_f=t_f, k=k, allow_lookahead=True
    )
    policy = DecoderPolicy(codec, k, decoder=decoder, seed=5)
    observation, _ = env.reset(seed=0, options={"episodes": [episode]})
    policy.reset(np.ones(1, dtype=bool), [episode])
    seen, done = [], False
    while not done:
        action = policy.act(observation)
        seen.append(({key: value.copy() for key, value in observation.items()}, action))
        observation, _, terminated, truncated, _ = env.step(action)
        done = bool(terminated[0] or truncated[0])
    return seen


@pytest.mark.parametrize("k", [1, 5, 25])
@pytest.mark.parametrize("t_f", [-25, 0, 25])
def test_the_future_changes_neither_observations_nor_tokens(codec, decoder, episode, t_f, k):
    source, original = episode
    reference = _play(source, original, decoder, codec, t_f, k)
    calls = len(reference)
    rng = np.random.default_rng([t_f + 100, k])
    changed_later = False
    for call in sorted({1, calls // 2, calls - 1}):
        visible = int(np.clip(call * k + t_f, 0, FRAMES))
        codes = original.input_codes.copy()
        codes[visible:] = rng.integers(0, codec.cardinality, size=codes[visible:].shape)
        heard = original.heard.copy()
        heard[visible * codec.hop_samples :] = 0.1
        mutated = dataclasses.replace(original, input_codes=codes, heard=heard)
        other = _play(source, mutated, decoder, codec, t_f, k)
        for (observation, action), (observation_2, action_2) in zip(
            reference[: call + 1], other[: call + 1], strict=True
        ):
            for key, value in observation.items():
                np.testing.assert_array_equal(value, observation_2[key], err_msg=key)
            np.testing.assert_array_equal(action, action_2)
        changed_later |= any((a[1] != b[1]).any() for a, b in zip(reference, other, strict=True))
    # If nothing at all changed, the decoder would be deaf and the test could not fail.
    assert changed_later or (t_f == -25 and k == 25)


@pytest.mark.slow
def test_the_decoder_uses_its_input(codec, decoder, tmp_path):
    tokens = load_tokens(BandCorpus(songs=600), codec, "validation", folder=tmp_path)
    batch = tokens.batch(np.random.default_rng(0), 96, 250)
    for all_codebooks in (False, True):
        use = {t_f: input_use(decoder, batch, t_f, 5, all_codebooks=all_codebooks) for t_f in (-25, 25)}
        gain = use[25]["other"] - use[25]["true"]
        assert gain.mean() > _half_width(gain), "the loss with the true input is not lower than with another song's"
        nearer = use[-25]["true"] - use[25]["true"]
        assert nearer.mean() > _half_width(nearer), "seeing further does not lower the loss"
    # What the input alone tells: with its own past before it, a frame is nearly known already.
    alone = {t_f: input_use(decoder, batch, t_f, 5, hide_past=True) for t_f in (-25, 25)}
    gain = alone[25]["other"] - alone[25]["true"]
    assert gain.mean() > 0.3 + _half_width(gain)
    nearer = alone[-25]["true"] - alone[25]["true"]
    assert nearer.mean() > _half_width(nearer), "hearing more does not help"


@pytest.mark.slow
def test_the_fine_tuned_decoder_is_more_coherent_than_its_start(codec):
    source = EpisodeSource(BandCorpus(songs=200), codec, "validation", frames=200, instruments=PITCHED)
    episodes = source.fixed(20, seed=1)
    env = AccompanimentVectorEnv(20, source=source, autoreset_mode="Disabled", reward=None, t_f=-25, k=5)
    coherence = create_from_spec(rewards, "coherence")

    def scores(checkpoint):
        records = play(DecoderPolicy(codec, 5, checkpoint=checkpoint), env, episodes)
        return score_metric(coherence, records, codec, decode_played(records, codec))

    gain = scores("ppo") - scores("mle")
    assert gain.mean() > _half_width(gain)


def _half_width(values):
    """Return half of the 95 % interval of the mean."""
    return 1.96 * values.std(ddof=1) / math.sqrt(len(values))
