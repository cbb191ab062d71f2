import numpy as np
import pytest
import torch

from jamgym.errors import ConfigError
from jamgym.policy import Policy
from jamgym.testing import PolicyConformance, ToyCodec
from jamgym_agents.decoder_policy import DecoderPolicy

from .helpers import tiny_decoder, vec_env


def policy(k=5, seed=0, **kwargs):
    return DecoderPolicy(ToyCodec(), k, seed=seed, decoder=tiny_decoder(), **kwargs)


def codes_of(env, player, calls, seed=0):
    observation, _ = env.reset(seed=seed)
    player.reset(np.ones(env.num_envs, dtype=bool), env.episodes)
    chunks = []
    for _ in range(calls):
        chunks.append(player.act(observation))
        observation = env.step(chunks[-1])[0]
    return np.concatenate(chunks, axis=1)


class TestConformance(PolicyConformance):
    def make(self, env):
        return DecoderPolicy(env.codec, env.timing.k, seed=0, decoder=tiny_decoder())


class TestConformanceLate(TestConformance):
    settings = {"k": 3, "t_f": -4, "frames": 20, "latency": {"name": "lognormal", "median_seconds": 0.15, "sigma": 0.5}}


def test_is_a_policy():
    assert isinstance(policy(), Policy) and not policy().privileged


def test_sampling_follows_the_seed():
    one, again, other = (codes_of(vec_env(2), policy(seed=seed), 4) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_a_new_episode_begins_without_reset():
    env, player = vec_env(2), policy(temperature=0.0)
    episodes = env.source.fixed(2, seed=3)
    runs = []
    for _ in range(2):
        observation, _ = env.reset(seed=0, options={"episodes": episodes})
        chunks = []
        for _ in range(env.timing.num_calls):
            chunks.append(player.act(observation))
            observation = env.step(chunks[-1])[0]
        runs.append(np.concatenate(chunks, axis=1))
    assert np.array_equal(runs[0], runs[1])


def test_log_probs_are_those_of_the_codes_under_temperature_and_top_k():
    env, player = vec_env(2), policy(temperature=0.7, top_k=3)
    observation, _ = env.reset(seed=0)
    chunk = player.step(observation)
    assert chunk.log_probs.shape == (2, 5, 2) and (chunk.log_probs > -torch.inf).all()
    assert chunk.hidden.shape == (2, 32) and player.last_chunk is chunk


@pytest.mark.parametrize("window", [5, 20])
def test_window_observations_are_refused(window):
    env = vec_env(2, observation="window", window=window, k=4)
    observation, _ = env.reset(seed=0)
    with pytest.raises(ConfigError, match="observation='new'"):
        policy(k=4).act(observation)


def test_another_chunk_size_is_refused():
    observation, _ = vec_env(2, k=5).reset(seed=0)
    with pytest.raises(ConfigError, match="k = 3"):
        policy(k=3).act(observation)
