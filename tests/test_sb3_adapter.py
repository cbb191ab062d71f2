import gymnasium
import numpy as np
import pytest
from stable_baselines3 import PPO

from jamgym import AccompanimentVectorEnv, EpisodeSource
from jamgym.errors import ConfigError
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward
from jamgym.wrappers.sb3 import JamgymSB3VecEnv

SETTINGS = dict(
    source=EpisodeSource(ToyCorpus(songs=3, seconds=1.2), ToyCodec(), frames=22),
    reward=ToyReward(),
    t_f=-5,
    k=4,
    latency={"name": "lognormal", "median_seconds": 0.17, "sigma": 0.5},
)


def make(n=3, **change):
    return JamgymSB3VecEnv(AccompanimentVectorEnv(n, **{**SETTINGS, **change}))


def test_adapter_equals_the_native_env(random_actions):
    adapter, native = make(), AccompanimentVectorEnv(3, **SETTINGS)
    adapter.seed(5)
    shown, _ = native.reset(seed=5)
    seen = adapter.reset()
    returns = np.zeros(3)
    ends = set()
    for actions in random_actions(40, 3, 4):
        assert seen.keys() == shown.keys() and all(np.array_equal(seen[key], shown[key]) for key in shown)
        seen, rewards, dones, infos = adapter.step(actions)
        shown, expected, terminated, truncated, native_infos = native.step(actions)
        returns += expected
        assert rewards.dtype == np.float32 and np.array_equal(rewards, expected.astype(np.float32))
        assert np.array_equal(dones, terminated | truncated)
        for row in range(3):
            if not dones[row]:
                assert infos[row] == {}
                continue
            final = native_infos["final_obs"][row]
            assert all(np.array_equal(infos[row]["terminal_observation"][key], final[key]) for key in final)
            assert infos[row]["TimeLimit.truncated"] is bool(truncated[row])
            assert (
                infos[row]["episode"]["r"] == pytest.approx(infos[row]["episode_score"]) == pytest.approx(returns[row])
            )
            assert infos[row]["episode"]["l"] == 6 and adapter.reset_infos[row]["call"] == 0
            ends.add(bool(terminated[row]))
            returns[row] = 0.0
    assert ends == {True, False}


def test_attributes_methods_and_options():
    adapter = make()
    adapter.seed(0)
    adapter.reset()
    adapter.step(np.ones((3, 8), dtype=int))
    assert [audio.shape for audio in adapter.env_method("played_audio", indices=[0, 2])] == [(2560,)] * 2
    assert adapter.get_attr("timing", 1) == [adapter.env.timing]
    adapter.set_attr("label", 3)
    assert adapter.get_attr("label") == [3, 3, 3]
    with pytest.raises(ConfigError, match="shared"):
        adapter.set_attr("label", 3, indices=0)
    episode = SETTINGS["source"].crop("train-0002", "bass", 4)
    adapter.set_options([{}, {"episode": episode}, {}])
    adapter.reset()
    # stable-baselines3 copies options, so identity is not to be had.
    assert np.array_equal(adapter.env.episodes[1].heard, episode.heard)
    with pytest.raises(ConfigError, match="SameStep"):
        make(autoreset_mode="NextStep")


def test_ppo_trains_on_the_adapter():
    model = PPO("MultiInputPolicy", make(), n_steps=8, batch_size=12, n_epochs=1, seed=0, device="cpu")
    model.learn(48)
    assert model.num_timesteps == 48 and len(model.ep_info_buffer) > 0


@pytest.mark.parametrize("observation", ["new", "window"])
def test_plain_ppo_trains_on_gymnasium_make(observation):
    env = gymnasium.make("jamgym/Accompaniment-v0", observation=observation, window=10, **SETTINGS)
    model = PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(32)
    assert model.num_timesteps == 32
