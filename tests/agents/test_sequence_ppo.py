import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger

from jamgym.errors import ConfigError, JamgymError
from jamgym.playback import ON_TIME
from jamgym.testing import ToyCodec
from jamgym.wrappers.sb3 import JamgymSB3VecEnv
from jamgym_agents.ppo import losses
from jamgym_agents.ppo import sequence_ppo as module
from jamgym_agents.ppo.sequence_ppo import SequencePPO
from jamgym_agents.sampling import Sampling

from .helpers import learn, make_ppo, tiny_decoder, vec_env

LATE = {"name": "lognormal", "median_seconds": 0.17, "sigma": 0.5}


@pytest.fixture
def seen(monkeypatch):
    """Collect (log_probs, old, mask) of every minibatch."""
    calls = []
    original = losses.clipped_policy_loss

    def spy(new, old, advantages, mask, clip):
        calls.append((new.detach().clone(), old.clone(), mask.clone()))
        return original(new, old, advantages, mask, clip)

    monkeypatch.setattr(module.losses, "clipped_policy_loss", spy)
    return calls


def check_ratio_one(seen, expected, tolerance):
    assert len(seen) == expected
    for new, old, mask in seen:
        assert mask.any() and (new - old).abs()[mask].max() < tolerance


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(top_k=5),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=1.2, guidance=2.0),
    ],
)
def test_without_learning_the_ratio_is_one(seen, sampling):
    # Late frames, T mod k != 0, two epochs, truncated distributions: all in one distribution and one history.
    env = vec_env(4, latency=LATE, k=4)
    learn(make_ppo(env, learning_rate=0.0, n_epochs=2, sampling=sampling))
    check_ratio_one(seen, 4, 1e-4)
    assert not all(bool(mask[:, :20].all()) for _, _, mask in seen)


def test_without_learning_the_ratio_is_one_in_bfloat16(seen):
    learn(make_ppo(vec_env(4), learning_rate=0.0, n_epochs=2, bf16=True))
    check_ratio_one(seen, 4, 2e-2)


@pytest.mark.parametrize("sampling", [Sampling(top_k=5), Sampling(top_p=0.8), Sampling(guidance=3.0, top_p=0.9)])
def test_a_code_at_the_edge_that_bfloat16_excludes_does_not_count(seen, sampling):
    for seed in range(4):
        model = learn(make_ppo(vec_env(4), n_epochs=2, bf16=True, sampling=sampling, seed=seed))
        assert all(bool(torch.isfinite(value).all()) for value in model.policy.state_dict().values())
    # Some are excluded, or this would show nothing.
    assert any(bool((old[mask] == -torch.inf).any()) for _, old, mask in seen)


class PlaysInBetween(BaseCallback):
    """Lets the model play other environments in the middle of a rollout, as `EvalCallback` does."""

    def __init__(self, env):
        super().__init__()
        self.env = JamgymSB3VecEnv(env)

    def _on_step(self):
        if self.n_calls % 2 == 0:
            evaluate_policy(self.model, self.env, n_eval_episodes=self.env.num_envs, warn=False)
        return True


@pytest.mark.parametrize("envs", [1, 4])
def test_evaluation_in_the_middle_of_a_rollout_changes_nothing_of_it(seen, envs):
    played = []
    for callback in (None, PlaysInBetween(vec_env(envs))):
        model = make_ppo(vec_env(4), learning_rate=0.0)
        model.learn(model.n_steps * model.n_envs, callback=callback, log_interval=None)
        played.append(model.rollout_buffer.batch.played)
    check_ratio_one(seen, 4, 1e-4)
    assert torch.equal(*played)


class StopsAt(BaseCallback):
    """Ends learning at its n-th step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def _on_step(self):
        return self.n_calls != self.step


def test_after_a_rollout_that_was_cut_a_new_episode_begins(seen):
    model = learn(make_ppo(vec_env(4), learning_rate=0.0))
    size = model.n_steps * model.n_envs
    model.learn(size, callback=StopsAt(3), log_interval=None, reset_num_timesteps=False)
    assert model.rollouts == 1
    model.learn(size, log_interval=None, reset_num_timesteps=False)
    assert model.rollouts == 2 and model.rollout_buffer.lengths.tolist() == [5, 5, 5, 5]
    check_ratio_one(seen, 4, 1e-4)


@pytest.mark.parametrize("seconds", [3.0, 0.8])
def test_without_learning_the_ratio_is_one_for_an_oracle_too(seen, seconds):
    # It looks beyond the end: of 22 frames, no multiple of k, or of songs of 20 frames. Nothing is there to be heard.
    env = vec_env(4, seconds=seconds, t_f=10, k=5, allow_lookahead=True)
    learn(make_ppo(env, learning_rate=0.0))
    check_ratio_one(seen, 2, 1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_every_episode_is_recomputed_under_its_own_view(seen, bf16):
    env = vec_env(8, t_f=[-10, -3, 6], allow_lookahead=True)
    model = learn(make_ppo(env, learning_rate=0.0, n_epochs=2, bf16=bf16))
    assert set(model.rollout_buffer.batch.t_f.tolist()) == {-10, -3, 6}
    check_ratio_one(seen, 8, 2e-2 if bf16 else 1e-4)


def test_a_reference_of_another_size_is_what_the_policy_is_held_to():
    other = tiny_decoder(seed=5, dim=16)
    model = make_ppo(vec_env(4), learning_rate=0.0, reference=other, kl_teacher=0.1, teacher_t_f=-5)
    logged = log_of(model)
    learn(model)
    # The same view and no guidance: the teacher is the reference, so both divergences are from `other`.
    assert logged["train/kl_reference"] > 1e-2 and logged["train/kl_teacher"] > 1e-2
    batch = model.rollout_buffer.batch
    with torch.no_grad():
        held, own = (model._log_probs(decoder, batch)[0] for decoder in (other, model.policy.decoder))
    mask = batch.token_mask.unsqueeze(-1).expand_as(batch.played)
    assert logged["train/kl_reference"] == pytest.approx(float(losses.exact_kl(own, held)[mask].mean()), rel=1e-3)


def test_the_teacher_hears_nothing_behind_the_end_of_a_song():
    model = make_ppo(vec_env(2, seconds=0.8, frames=40), learning_rate=0.0)
    learn(model)
    batch = model.rollout_buffer.batch
    assert batch.frames.tolist() == [20, 20] and batch.heard.shape[1] == 40
    cut = replace(batch, heard=batch.heard[:, :20], played=batch.played[:, :20])
    with torch.no_grad():
        whole, alone = (model._log_probs(model.reference, part, 15)[0][:, :20] for part in (batch, cut))
    assert torch.allclose(whole, alone, atol=1e-5)


def test_one_episode_of_one_chunk_can_be_trained_on():
    learn(make_ppo(vec_env(1, frames=4), episodes_per_batch=1))


def test_dropout_is_off_in_the_update(seen):
    model = make_ppo(vec_env(4), learning_rate=0.0)
    model.policy.decoder.train()
    learn(model)
    check_ratio_one(seen, 2, 1e-4)
    assert not any(m.p for m in model.policy.decoder.modules() if isinstance(m, torch.nn.Dropout))


def log_of(model):
    """Return what the model logs last under each name, from now on."""
    logged = {}
    model.set_logger(Logger(None, []))
    model.logger.record = lambda name, value, **_: logged.__setitem__(name, value)
    return logged


def test_divergence_from_itself_is_zero_and_learning_moves_it():
    model = make_ppo(vec_env(4), learning_rate=0.0)
    logged = log_of(model)
    learn(model)
    assert abs(logged["train/kl_reference"]) < 1e-6 and logged["train/ratio"] == pytest.approx(1.0, abs=1e-5)
    model.lr_schedule = lambda _: 3e-3
    learn(model)
    learn(model)
    assert logged["train/kl_reference"] > 1e-5


@pytest.mark.parametrize("kind", ["reverse", "forward", "both"])
@pytest.mark.parametrize("teacher_t_f, guidance, differs", [(-5, 1.0, False), (-5, 3.0, True), (10, 1.0, True)])
def test_the_teacher_is_the_start_with_its_own_view_and_guidance(teacher_t_f, guidance, differs, kind):
    settings = {"teacher_t_f": teacher_t_f, "teacher_guidance": guidance, "teacher_kl": kind}
    model = make_ppo(vec_env(4), learning_rate=0.0, kl_teacher=0.1, **settings)
    logged = log_of(model)
    learn(model)
    assert abs(logged["train/kl_reference"]) < 1e-6
    assert (logged["train/kl_teacher"] > 1e-2) == differs


@pytest.mark.parametrize("kind", ["reverse", "forward", "both"])
def test_the_policy_comes_closer_to_its_teacher(kind):
    settings = {"kl_reference": 0.0, "kl_teacher": 100.0, "teacher_t_f": 10, "teacher_kl": kind, "max_grad_norm": 10.0}
    model = make_ppo(vec_env(4), learning_rate=1e-3, critic_warm_up=0, **settings)
    logged, found = log_of(model), []
    for _ in range(6):
        learn(model)
        found.append(logged["train/kl_teacher"])
    assert found[-1] < 0.8 * found[0]


def test_an_unknown_teacher_kl_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"Unknown teacher_kl 'foward'. Did you mean 'forward'"):
        make_ppo(vec_env(2), teacher_kl="foward")


def test_only_the_critic_learns_in_its_warm_up():
    model = make_ppo(vec_env(4), critic_warm_up=1)
    before, critic = copy.deepcopy(model.policy.decoder.state_dict()), copy.deepcopy(model.policy.critic.state_dict())
    learn(model)
    assert all(torch.equal(before[key], value) for key, value in model.policy.decoder.state_dict().items())
    assert not torch.equal(critic["head.weight"], model.policy.critic.head.weight)
    learn(model)
    assert any(not torch.equal(before[key], value) for key, value in model.policy.decoder.state_dict().items())
    assert all(torch.equal(before[key], value) for key, value in model.reference.state_dict().items())


def test_peeking_leaves_the_stream_as_it_is():
    env, other = vec_env(2), vec_env(2)
    models = [make_ppo(env), make_ppo(other)]
    actions = []
    for peek, model in zip((False, True), models, strict=True):
        model.env.seed(3)
        observation = model.env.reset()
        chosen = []
        for _ in range(3):
            chosen.append(model.policy.act(observation)[0])
            observation = model.env.step(chosen[-1])[0]
            if peek:
                model.policy.peek_values(observation)
        actions.append(np.stack(chosen))
    assert np.array_equal(*actions)


def test_the_value_of_a_truncated_end_is_that_of_the_terminal_observation():
    model = make_ppo(vec_env(3))
    torch.nn.init.normal_(model.policy.critic.head.weight, generator=torch.Generator().manual_seed(0))
    found = {}
    original = model.rollout_buffer.finish
    model.rollout_buffer.finish = lambda records, last: (
        found.update(last=last, records=records),
        original(records, last),
    )
    learn(model)
    batch = model.rollout_buffer.batch
    for row, record in enumerate(found["records"]):
        if record.episode.ends_song:
            assert found["last"][row] == 0.0
            continue
        # The state after the last chunk: one frame more, seen through the mask of the call that would come next.
        length, k, t_f = record.episode.frames, model.k, record.timing.t_f
        calls = -(-length // k)
        heard = torch.zeros(1, calls * k + 1, 2, dtype=torch.int64)
        heard[0, :length] = torch.from_numpy(record.episode.input_codes.astype(np.int64))
        played = torch.zeros(1, calls * k + 1, 2, dtype=torch.int64)
        played[0, :length] = torch.from_numpy(record.played_codes.astype(np.int64))
        assert calls * k + t_f <= length and not record.episode.ends_song
        assert torch.equal(batch.played[row, :length], played[0, :length])


def test_terminal_value_equals_the_teacher_forced_one():
    # frames is a multiple of k, so nothing is emitted beyond the end and the comparison is exact.
    model = make_ppo(vec_env(3, frames=20), learning_rate=0.0)
    torch.nn.init.normal_(model.policy.critic.head.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.policy.critic.head.weight.mul_(3)
    head = model.policy.critic.head.weight.detach().clone()
    model.policy.optimizer.param_groups[1]["lr"] = 0.0
    found = {}
    original = model.rollout_buffer.finish
    model.rollout_buffer.finish = lambda records, last: (
        found.update(last=last, records=records),
        original(records, last),
    )
    learn(model)
    assert torch.equal(head, model.policy.critic.head.weight)
    kinds = set()
    for row, record in enumerate(found["records"]):
        extra = np.zeros((1, 2), dtype=np.int64)
        heard = torch.from_numpy(np.concatenate([record.episode.input_codes, extra]))[None].long()
        played = torch.from_numpy(np.concatenate([record.played_codes, extra]))[None].long()
        instrument = torch.tensor([record.episode.instrument])
        with torch.no_grad():
            _, hidden = model.policy.decoder.trunk(heard, played, instrument, torch.tensor([-5]), torch.tensor([5]))
            value = float(model.policy.critic(hidden[0, 20]))
            starts = model.policy.critic(hidden[0, 0:20:5])
        expected = 0.0 if record.episode.ends_song else value
        assert found["last"][row] == pytest.approx(expected, abs=1e-4)
        assert np.allclose(model.rollout_buffer.values[row], starts, atol=1e-4)
        kinds.add(record.episode.ends_song)
    assert False in kinds


def test_terminated_episodes_are_worth_nothing_afterwards():
    # Songs are shorter than the episode, so every episode ends its song.
    model = make_ppo(vec_env(2, seconds=0.8, frames=60))
    torch.nn.init.constant_(model.policy.critic.head.bias, 5.0)
    found = {}
    original = model.rollout_buffer.finish
    model.rollout_buffer.finish = lambda records, last: (found.update(last=last), original(records, last))
    learn(model)
    assert (found["last"] == 0).all()


def test_what_was_played_enters_the_history_and_late_chunks_are_masked():
    model = make_ppo(vec_env(4, latency=LATE), learning_rate=0.0)
    records = {}
    original = model.rollout_buffer.finish
    model.rollout_buffer.finish = lambda made, last: (records.update(made=made), original(made, last))
    learn(model)
    batch, late_seen = model.rollout_buffer.batch, 0
    for row, record in enumerate(records["made"]):
        length = record.episode.frames
        assert np.array_equal(batch.played[row, :length], record.played_codes)
        for call in range(-(-length // 5)):
            part = slice(call * 5, min(call * 5 + 5, length))
            late = bool((record.status[part] != ON_TIME).any())
            late_seen += late
            assert bool(batch.token_mask[row, part].any()) == (not late)
            assert bool(batch.token_mask[row, part].all()) == (not late)
        assert not batch.token_mask[row, length:].any()
        assert batch.chunk_mask[row].sum() == -(-length // 5)
    assert 0 < late_seen < batch.chunk_mask.sum()


def test_an_update_that_is_not_finite_leaves_the_weights():
    model = make_ppo(vec_env(2))
    before = copy.deepcopy(model.policy.state_dict())
    original = model.rollout_buffer.finish

    def poisoned(records, last):
        original(records, last)
        model.rollout_buffer.batch.advantages[:] = np.nan

    model.rollout_buffer.finish = poisoned
    with pytest.raises(JamgymError, match="not finite.*checkpoint, if any, is intact"):
        learn(model)
    assert all(torch.equal(before[key], value) for key, value in model.policy.state_dict().items())


class LikesOneCode:
    """Reward of the share of 40 ms blocks that sound as loud as level 15, and of nothing else."""

    name, version, causal, range, needs = "level", "1", True, (0.0, 1.0), frozenset()
    window_seconds = min_window_seconds = hop_seconds = 0.2

    def score(self, windows):
        level = np.sqrt(np.mean(np.square(windows.played.reshape(len(windows.played), -1, 640)), axis=2))
        return (level > 0.28).mean(1).astype(np.float32)


@pytest.mark.slow
def test_a_bandit_is_solved():
    env = vec_env(8, reward=LikesOneCode(), frames=20)
    model = make_ppo(
        env, tiny_decoder(sharpness=1.0), learning_rate=3e-3, episodes_per_batch=4, kl_reference=0.0, n_epochs=2
    )
    scores = []
    original = model.rollout_buffer.finish
    model.rollout_buffer.finish = lambda records, last: (
        scores.append(np.mean([record.score for record in records])),
        original(records, last),
    )
    learn(model, 30)
    assert np.mean(scores[:3]) < 0.25 and np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.3, scores


def test_save_and_load_of_stable_baselines3_keep_working(tmp_path):
    env = vec_env()
    model = learn(make_ppo(env, seed=0))
    model.save(tmp_path / "model.zip")
    loaded = SequencePPO.load(tmp_path / "model.zip", env=JamgymSB3VecEnv(env))
    for (name, before), after in zip(
        model.policy.state_dict().items(), loaded.policy.state_dict().values(), strict=True
    ):
        assert torch.equal(before, after), name
    assert (loaded.rollouts, loaded.k) == (model.rollouts, model.k)
    learn(loaded)
    assert loaded.rollouts == model.rollouts + 1


@pytest.mark.parametrize("t_f", [-10, 0, (-10, 0)])
@pytest.mark.parametrize("how", ["load", "set_env"])
def test_a_model_goes_on_with_the_view_of_its_new_environment(seen, tmp_path, t_f, how):
    model = learn(make_ppo(vec_env(4), learning_rate=0.0))
    env = JamgymSB3VecEnv(vec_env(4, t_f=t_f))
    if how == "load":
        model.save(tmp_path / "model.zip")
        model = SequencePPO.load(tmp_path / "model.zip", env=env)
    else:
        model.set_env(env)
    learn(model)
    assert set(model.rollout_buffer.batch.t_f.tolist()) == ({t_f} if isinstance(t_f, int) else set(t_f))
    check_ratio_one(seen, 4, 1e-4)


class OtherCodec(ToyCodec):
    version = "another"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"frames": 40}, "calls per episode 8, but this model was made for 5"),
        ({"k": [1, 5]}, "one k a run"),
        ({"codec": OtherCodec()}, "codec 'another', but this model was made for"),
    ],
)
def test_an_environment_that_a_model_cannot_go_on_with_is_refused(settings, match):
    model = make_ppo(vec_env(2))
    model.set_env(JamgymSB3VecEnv(vec_env(2, **settings)))
    with pytest.raises(ConfigError, match=match):
        learn(model)


def seeds(model):
    return model.batch_generator.initial_seed(), model.policy.player._generator.initial_seed()


def test_a_loaded_model_draws_other_numbers_than_a_new_one(tmp_path):
    model = learn(make_ppo(vec_env(2), learning_rate=0.0))
    model.save(tmp_path / "model.zip")
    loaded = SequencePPO.load(tmp_path / "model.zip", env=JamgymSB3VecEnv(vec_env(2)))
    streams = [
        (m.batch_generator.initial_seed(), m.policy.player._generator.initial_seed())
        for m in (make_ppo(vec_env(2)), loaded)
    ]
    assert streams[0][0] != streams[1][0] and streams[0][1] != streams[1][1]


def test_a_model_is_loaded_to_the_processor_where_there_is_a_gpu_too(tmp_path, monkeypatch):
    learn(make_ppo(vec_env(2))).save(tmp_path / "model.zip")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loaded = SequencePPO.load(tmp_path / "model.zip", env=JamgymSB3VecEnv(vec_env(2)))
    assert loaded.device.type == "cpu" and learn(loaded).rollouts == 2


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"target_kl": 0.01}, "target_kl"),
        ({"clip_range_vf": 0.2}, "clip_range_vf"),
        ({"tensorbord_log": "runs"}, "tensorboard_log"),
        ({"device": "cuda"}, "device is 'cuda'"),
        ({"sampling": Sampling(temperature=0.0)}, "nothing to learn from"),
        ({"sampling": Sampling(top_k=1)}, "nothing to learn from"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        make_ppo(vec_env(2), **settings)


def test_a_policy_alone_is_not_saved(tmp_path):
    with pytest.raises(ConfigError, match="save_decoder"):
        make_ppo(vec_env(2)).policy.save(str(tmp_path / "policy.zip"))


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"observation": "window"}, "observation='new'"),
        ({"action": "audio"}, "action='tokens'"),
        ({"backlog": "skip"}, "backlog='queue'"),
        ({"late_policy": "stall"}, "stall"),
        ({"k": [1, 5]}, "one k a run"),
    ],
)
def test_environments_that_one_pass_cannot_recompute_are_refused(setting, match):
    with pytest.raises(ConfigError, match=match):
        make_ppo(vec_env(2, **setting))


@pytest.mark.parametrize("late_policy", ["repeat", "conceal"])
def test_late_policies_and_sets_of_latency_train(late_policy):
    slow = {"name": "lognormal", "median_seconds": 0.2, "sigma": 0.5}
    model = make_ppo(vec_env(4, late_policy=late_policy, latency=["none", slow], salvage="chunk"))
    learn(model)
    batch = model.rollout_buffer.batch
    assert 0 < float(batch.token_mask.float().mean()) < 1
