"""Shared pieces of the environment's tests: a small source and short ways to build and drive environments."""

from __future__ import annotations

import numpy as np
import pytest

from jamgym import AccompanimentEnv, AccompanimentVectorEnv, EpisodeSource
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward


@pytest.fixture(scope="session")
def toy_source() -> EpisodeSource:
    """Songs of 3 s (75 frames), episodes of 22 frames: T mod 5 != 0."""
    return EpisodeSource(ToyCorpus(songs=3, seconds=3.0), ToyCodec(), frames=22)


@pytest.fixture
def make_env(toy_source):
    def make(**settings) -> AccompanimentEnv:
        settings.setdefault("source", toy_source)
        settings.setdefault("reward", ToyReward())
        settings.setdefault("t_f", -5)
        return AccompanimentEnv(**settings)

    return make


@pytest.fixture
def make_vec(toy_source):
    def make(num_envs=3, **settings) -> AccompanimentVectorEnv:
        settings.setdefault("source", toy_source)
        settings.setdefault("reward", ToyReward())
        settings.setdefault("t_f", -5)
        return AccompanimentVectorEnv(num_envs, **settings)

    return make


@pytest.fixture
def random_actions():
    """Return a function that draws loud random actions `(steps, N, k * Q)` for the toy codec."""

    def draw(steps, num_envs, k, q=2, seed=0):
        return np.random.default_rng(seed).integers(1, 16, (steps, num_envs, k * q))

    return draw
