from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from jamgym_agents.ppo.buffer import EpisodeBuffer

SPACE = spaces.Box(0, 1, (1,), np.float32)


def buffer(envs=2, chunks=3, k=2, gamma=0.5, gae_lambda=1.0):
    return EpisodeBuffer(chunks, SPACE, spaces.MultiDiscrete([4] * k), "cpu", gae_lambda, gamma, envs, k=k, codebooks=1)


def record(frames, status=None, code=1):
    episode = SimpleNamespace(input_codes=np.full((frames, 1), 2, dtype=np.int16), instrument=code)
    status = np.ones(frames, dtype=np.int8) if status is None else np.array(status, dtype=np.int8)
    timing = SimpleNamespace(t_f=-frames)
    return SimpleNamespace(
        episode=episode, played_codes=np.full((frames, 1), code, np.int16), status=status, timing=timing
    )


def fill(target, rewards, values=None):
    """Add `(C, N)` rewards."""
    rewards = np.asarray(rewards, dtype=np.float32)
    values = np.zeros_like(rewards) if values is None else np.asarray(values, dtype=np.float32)
    n = rewards.shape[1]
    for call in range(len(rewards)):
        target.add_call(values[call], np.full((n, target.k, 1), -float(call)), rewards[call], np.ones(n, dtype=bool))


def test_two_chunk_problem_by_hand():
    # Rewards 1 then 2 in row 0, 0 then 4 in row 1; values 0.5 and 1; gamma 0.5, lambda 1; row 0 cut at a value of 8.
    made = buffer(chunks=2)
    fill(made, [[1, 0], [2, 4]], [[0.5, 0.5], [1, 1]])
    made.finish([record(4), record(4)], np.array([8.0, 0.0]))
    assert np.allclose(made.returns, [[1 + 0.5 * 2 + 0.25 * 8, 2 + 0.5 * 8], [0 + 0.5 * 4, 4]])
    assert np.allclose(made.advantages, made.returns - [[0.5, 1], [0.5, 1]])


def test_a_good_chunk_raises_only_its_own_reward():
    made = buffer(gamma=0.0)
    fill(made, [[0, 0], [1, 0], [0, 0]])
    made.finish([record(6), record(6)], np.zeros(2))
    assert made.advantages.tolist() == [[0, 1, 0], [0, 0, 0]]
    whitened = made.batch.advantages
    assert whitened[0, 1] > 0 and (whitened.flatten()[[0, 2, 3, 4, 5]] < 0).all()
    assert made.batch.log_probs[0, :, 0].tolist() == [0, 0, -1, -1, -2, -2]


def test_short_and_late_episodes():
    made = buffer()
    made.add_call(np.ones(2), np.zeros((2, 2, 1)), np.ones(2), np.array([True, True]))
    made.add_call(np.ones(2), np.zeros((2, 2, 1)), np.ones(2), np.array([True, True]))
    made.add_call(np.full(2, np.nan), np.zeros((2, 2, 1)), np.full(2, np.nan), np.array([True, False]))
    made.values[0, 2] = made.rewards[0, 2] = 1.0
    made.finish([record(6, [2, 1, 1, 1, 1, 1]), record(3)], np.zeros(2))
    assert made.batch.token_mask.int().tolist() == [[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert made.batch.chunk_mask.int().tolist() == [[1, 1, 1], [1, 1, 0]]
    assert made.batch.t_f.tolist() == [-6, -3]
    assert torch.isfinite(made.batch.advantages).all() and made.batch.advantages[1, 2] == 0
    assert made.batch.instrument.tolist() == [1, 1] and made.batch.heard[1, 3:].sum() == 0


def test_minibatches_hold_every_episode_once_in_seeded_order():
    made = buffer(envs=5)
    fill(made, np.zeros((3, 5)))
    made.finish([record(6, code=row) for row in range(5)], np.zeros(5))
    orders = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(4)
        orders.append([batch.instrument.tolist() for batch in made.episodes(2, generator)])
    assert orders[0] == orders[1] and sorted(sum(orders[0], [])) == list(range(5))
    assert [len(part) for part in orders[0]] == [2, 2, 1]
    batch = next(iter(made.episodes(5, generator)))
    assert torch.equal(batch.played[:, 0, 0], batch.instrument)


def test_an_unfinished_rollout_has_no_minibatches():
    with pytest.raises(RuntimeError, match="not finished"):
        next(buffer().episodes(1, torch.Generator()))
