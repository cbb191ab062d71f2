import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from jamgym import AccompanimentEnv, AccompanimentVectorEnv, EpisodeSource
from jamgym.errors import ActionError, ConfigError
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward

SETTINGS = dict(
    corpus=ToyCorpus(songs=3, seconds=1.4),
    codec=ToyCodec(),
    reward=ToyReward(needs=("target", "truth")),
    t_f=-5,
    k=4,
    frames=22,
    late_policy="repeat",
    latency={"name": "lognormal", "median_seconds": 0.17, "sigma": 0.5},
)
# Songs of 35 frames; with 7 and 50 frames rows end at different calls.
LONG = EpisodeSource(ToyCorpus(songs=3, seconds=1.4), ToyCodec(), frames=40)


def equal(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            equal(a[key], b[key])
    elif isinstance(a, np.ndarray) and a.dtype == object:
        for x, y in zip(a, b, strict=True):
            equal(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize("observation", ["new", "window"])
def test_native_equals_gymnasiums_sync_vector_env(mode, observation, random_actions):
    settings = {**SETTINGS, "observation": observation, "window": 9}
    native = AccompanimentVectorEnv(3, autoreset_mode=mode, **settings)
    sync = SyncVectorEnv([lambda: AccompanimentEnv(**settings)] * 3, autoreset_mode=AutoresetMode(mode))
    assert native.observation_space == sync.observation_space and native.action_space == sync.action_space
    equal(native.reset(seed=11), sync.reset(seed=11))
    for actions in random_actions(26, 3, 4):
        equal(native.step(actions), sync.step(actions))
    equal(native.reset(seed=[4, None, 5]), sync.reset(seed=[4, None, 5]))


def short_episodes():
    return [
        LONG.crop("train-0000", "bass", 35 - 7),
        LONG.crop("train-0001", "bass", 3),
        LONG.crop("train-0002", "piano", 21),
    ]


@pytest.mark.parametrize("observation", ["new", "window"])
def test_rows_of_different_lengths_equal_single_envs(observation, random_actions):
    settings = {**SETTINGS, "observation": observation, "window": 9}
    episodes = short_episodes()
    assert [e.frames for e in episodes] == [7, 32, 14]
    native = AccompanimentVectorEnv(3, **settings)
    singles = [AccompanimentEnv(**settings) for _ in range(3)]
    batch, _ = native.reset(seed=1, options={"episodes": episodes})
    for row, env in enumerate(singles):
        single, _ = env.reset(seed=1 + row, options={"episode": episodes[row]})
        equal(single, {key: value[row] for key, value in batch.items()})
    for actions in random_actions(20, 3, 4, seed=3):
        batch, rewards, terminated, truncated, infos = native.step(actions)
        for row, env in enumerate(singles):
            single, reward, end, cut, info = env.step(actions[row])
            assert (reward, end, cut) == (rewards[row], terminated[row], truncated[row])
            if end or cut:
                equal(single, infos["final_obs"][row])
                assert info["episode_score"] == infos["final_info"]["episode_score"][row]
                equal(env.final_record().played_audio, native.final_record(row).played_audio)
                equal(env.final_record().log.__dict__, native.final_record(row).log.__dict__)
                single, info = env.reset()
            equal(single, {key: value[row] for key, value in batch.items()})
            assert all(infos[key][row] == value for key, value in info.items())
            assert np.array_equal(native.played_codes(row), env.played_codes())
            assert np.array_equal(native.played_audio(row), env.played_audio())


def test_autoreset_modes_give_the_same_transitions(random_actions):
    """Follow one row through all modes; its action is a function of what it saw."""

    def act(observation):
        frame = observation["frame"].astype(int)
        return ((observation["heard"].sum((1, 2))[:, None] + frame + np.arange(8)) % 16).astype(int)

    def run(mode):
        env = AccompanimentVectorEnv(3, autoreset_mode=mode, **SETTINGS)
        observation, _ = env.reset(seed=2)
        rows = [[] for _ in range(3)]
        over = np.zeros(3, dtype=bool)
        for _ in range(30):
            following, rewards, terminated, truncated, infos = env.step(act(observation))
            for row in range(3):
                if mode == "NextStep" and over[row]:
                    continue  # this step only began the next episode
                shown = {key: value[row] for key, value in following.items()}
                ended = terminated[row] or truncated[row]
                if mode == "SameStep" and ended:
                    shown = infos["final_obs"][row]
                rows[row].append((shown, rewards[row], terminated[row], truncated[row]))
            over = terminated | truncated
            observation = following
            if mode == "Disabled" and over.any():
                with pytest.raises(ResetNeeded, match="reset_mask"):
                    env.step(act(observation))
                observation, infos = env.reset(options={"reset_mask": over})
                assert np.array_equal(infos["_call"], over)
        return rows

    reference = run("SameStep")
    for mode in ("NextStep", "Disabled"):
        for one, two in zip(reference, run(mode), strict=True):
            assert min(len(one), len(two)) >= 20
            equal(one[:20], two[:20])


def test_reset_mask_leaves_the_other_rows_alone(random_actions):
    episodes = short_episodes()
    actions = random_actions(6, 3, 4)
    env = AccompanimentVectorEnv(3, autoreset_mode="Disabled", **SETTINGS)
    alone = AccompanimentVectorEnv(3, autoreset_mode="Disabled", **SETTINGS)
    for e in (env, alone):
        e.reset(seed=0, options={"episodes": [episodes[1]] * 3})
        e.step(actions[0])
    # The new episode is longer than any before, so the arrays grow under the rows that go on.
    longest = LONG.crop("train-0002", "flute", 0)
    observation, _ = env.reset(
        options={"reset_mask": np.array([False, True, False]), "episodes": [None, longest, None]}
    )
    assert observation["frame"][:, 0].tolist() == [4, 0, 4] and env.episodes[1] is longest
    for action in actions[1:5]:
        one, two = env.step(action), alone.step(action)
        for row in (0, 2):
            equal({k: v[row] for k, v in one[0].items()}, {k: v[row] for k, v in two[0].items()})
            assert one[1][row] == two[1][row]
    equal(env.event_log(2).__dict__, alone.event_log(2).__dict__)
    equal(env.played_audio(2), alone.played_audio(2))


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_pickling_mid_episode_goes_on_identically(mode, random_actions):
    env = AccompanimentVectorEnv(3, autoreset_mode=mode, **SETTINGS)
    env.reset(seed=0, options={"episodes": short_episodes()})
    actions = random_actions(20, 3, 4)
    for action in actions[:3]:
        env.step(action)
    twin = pickle.loads(pickle.dumps(env))
    for action in actions[3:]:
        equal(env.step(action), twin.step(action))


def test_make_vec_takes_the_native_env_and_json_kwargs():
    env = gymnasium.make_vec(
        "jamgym/Accompaniment-v0",
        num_envs=2,
        corpus={"name": "jamgym.testing:ToyCorpus"},
        codec={"name": "jamgym.testing:ToyCodec"},
        reward=None,
        autoreset_mode="NextStep",
        frames=20,
    )
    assert isinstance(env, AccompanimentVectorEnv) and env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    env.spec.to_json()
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert env.step(env.action_space.sample())[1].dtype == np.float64


def test_returned_arrays_are_the_callers_own(random_actions):
    untouched = AccompanimentVectorEnv(3, **SETTINGS)
    env = AccompanimentVectorEnv(3, **SETTINGS)
    seen, expected = env.reset(seed=0), untouched.reset(seed=0)
    for actions in random_actions(14, 3, 4):
        for part in (*seen[0].values(), *(v for v in seen[-1].values() if isinstance(v, np.ndarray))):
            if part.dtype != object:
                part[:] = 1
        for part in seen[1:-1]:
            part[:] = 1
        seen, expected = env.step(actions), untouched.step(actions)
        equal(seen, expected)


def test_bad_arguments():
    env = AccompanimentVectorEnv(2, **SETTINGS)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros((2, 8), dtype=int))
    env.reset(seed=0)
    with pytest.raises(ActionError, match=r"\(2, 8\) or \(2, 4, 2\)"):
        env.step(np.zeros(8, dtype=int))
    with pytest.raises(ConfigError, match="3 seeds"):
        env.reset(seed=[1, 2, 3])
    for seed, match in (
        (1.5, "seed is 1.5; give a whole number, or a sequence"),
        ("ab", "seed is 'ab'; give a whole number"),
        ([1, 2.5], "A seed is 2.5; it must be a whole number"),
    ):
        with pytest.raises(ConfigError, match=match):
            env.reset(seed=seed)
    env.reset(seed=np.array([1, 2]))
    with pytest.raises(ConfigError, match="reset_mask"):
        env.reset(options={"reset_mask": [True, False]})
    with pytest.raises(ConfigError, match="Did you mean 'episodes'"):
        env.reset(options={"episode": None})
    with pytest.raises(ConfigError, match="entries"):
        env.reset(options={"episodes": []})
    with pytest.raises(ConfigError, match="Did you mean 'SameStep'"):
        AccompanimentVectorEnv(2, autoreset_mode="SameStpe", **SETTINGS)
    with pytest.raises(ConfigError, match="num_envs"):
        AccompanimentVectorEnv(0, **SETTINGS)
