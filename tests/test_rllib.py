"""What RLlib is given, and RLlib with it where ray is installed."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from jamgym import AccompanimentEnv, AccompanimentVectorEnv
from jamgym.errors import ConfigError
from jamgym.testing import ToyCorpus
from jamgym.wrappers.rllib import RllibVectorEnv, make_env

# As in a configuration file: names only. 22 frames in chunks of 4 make 6 calls.
CONFIG = dict(
    corpus={"name": "jamgym.testing:ToyCorpus", "songs": 3, "seconds": 1.2},
    codec="jamgym.testing:ToyCodec",
    reward="jamgym.testing:ToyReward",
    t_f=-5,
    k=4,
    frames=22,
    latency={"name": "lognormal", "median_seconds": 0.17, "sigma": 0.5},
)
CALLS = 6


def heard(env, seed):
    """Return what each row hears in its first episode."""
    env.reset(seed=seed)
    return [episode.heard.tobytes() for episode in env.episodes]


def test_make_env_gives_what_rllib_asks_for():
    single, vector = make_env(CONFIG), make_env({**CONFIG, "num_envs": 3})
    assert isinstance(single, AccompanimentEnv) and isinstance(vector, RllibVectorEnv)
    assert vector.num_envs == 3 and vector.autoreset_mode is AutoresetMode.NEXT_STEP
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert vector.single_observation_space == single.observation_space
    with pytest.raises(ConfigError, match=r"NextStep.*'SameStep'"):
        make_env({**CONFIG, "num_envs": 3, "autoreset_mode": "SameStep"})
    with pytest.raises(ConfigError, match="frames"):
        make_env({**CONFIG, "num_envs": 3, "frame": 3})


def test_rows_of_neighbouring_runners_have_streams_of_their_own():
    many = dict(CONFIG, corpus=ToyCorpus(songs=200, seconds=1.2))
    plain, spread = AccompanimentVectorEnv(6, **many), make_env({**many, "num_envs": 6})
    # RLlib seeds its runners with s + 1, s + 2, ...
    assert heard(plain, 1)[1:] == heard(plain, 2)[:-1]
    assert len({*heard(spread, 1), *heard(spread, 2)}) >= 11
    assert heard(spread, 1) == heard(spread, 1)
    assert heard(spread, np.int64(1)) == heard(spread, 1)
    # A list still means one seed per row.
    assert heard(spread, [1, 2, 3, 4, 5, 6]) == heard(plain, 1)


@pytest.fixture(scope="module")
def algorithm_config():
    pytest.importorskip("ray.rllib", reason="needs the extra `rllib`")
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import FlattenObservations
    from ray.tune.registry import register_env

    ray.init(include_dashboard=False, log_to_driver=False, num_cpus=2, ignore_reinit_error=True)
    register_env("jamgym", make_env)

    def make(mode):
        return (
            PPOConfig()
            .environment("jamgym", env_config=CONFIG)
            .env_runners(
                num_env_runners=0,
                num_envs_per_env_runner=3,
                gym_env_vectorize_mode=mode,
                env_to_module_connector=lambda env=None, spaces=None, device=None: FlattenObservations(),
            )
            .training(train_batch_size_per_learner=60, minibatch_size=30, num_epochs=1)
            .debugging(seed=0, log_level="ERROR")
        )

    yield make
    ray.shutdown()


MODES = pytest.mark.parametrize(
    ("mode", "kind"), [("vector_entry_point", RllibVectorEnv), ("sync", gymnasium.vector.SyncVectorEnv)]
)


@MODES
def test_runner_samples_whole_episodes(algorithm_config, mode, kind):
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    runner = SingleAgentEnvRunner(config=algorithm_config(mode))
    assert isinstance(runner.env.unwrapped, kind) and runner.env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    episodes = runner.sample(num_episodes=9, random_actions=True)
    assert len(episodes) >= 9
    for episode in episodes:
        assert len(episode) == CALLS and episode.is_done
        # Each episode begins at its own first observation and ends at its own last one: no step is another episode's.
        # "frame" is the first number of a flattened observation.
        frames = [int(observation[0]) for observation in episode.get_observations()]
        assert frames == [0, 4, 8, 12, 16, 20, 24]
        last = episode.get_infos(-1)
        assert episode.get_return() == pytest.approx(last["episode_score"]) and last["call"] == CALLS
    assert {bool(episode.is_terminated) for episode in episodes} == {True, False}
    runner.stop()


@MODES
def test_ppo_trains(algorithm_config, mode, kind):
    algorithm = algorithm_config(mode).build_algo()
    result = algorithm.train()
    found = result["env_runners"]
    assert found["num_env_steps_sampled"] >= 60 and found["episode_len_mean"] == CALLS
    assert 0.0 < found["episode_return_mean"] <= 1.0
    assert np.isfinite(result["learners"]["default_policy"]["total_loss"])
    algorithm.stop()
