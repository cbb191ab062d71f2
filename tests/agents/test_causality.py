"""What is not visible yet has no influence: through the real environment, bit for bit, and in the gradients."""

import dataclasses

import numpy as np
import pytest
import torch

from jamgym.testing import ToyCodec
from jamgym_agents.decoder_policy import DecoderPolicy

from .helpers import tiny_decoder, vec_env

FRAMES = 60


def emitted(env, episodes, k, aligned):
    player = DecoderPolicy(ToyCodec(), k, decoder=tiny_decoder(aligned_frames=aligned, aligned_past=aligned), seed=0)
    observation, _ = env.reset(seed=0, options={"episodes": episodes})
    chunks = []
    for _ in range(env.timing.num_calls):
        chunks.append(player.act(observation))
        observation = env.step(chunks[-1])[0]
    return np.concatenate(chunks, axis=1)


def with_other_future(episode, start):
    """Return `episode` with all input frames from `start` on changed."""
    codes, heard = episode.input_codes.copy(), episode.heard.copy()
    codes[start:] = (codes[start:] + 5) % 16
    heard[start * 640 :] *= -0.5
    return dataclasses.replace(episode, input_codes=codes, heard=heard)


@pytest.mark.parametrize("t_f", [-25, 0, 25])
@pytest.mark.parametrize("k", [1, 5, 25])
@pytest.mark.parametrize("aligned", [0, 3])
def test_changing_what_is_not_visible_leaves_emitted_codes_bit_identical(t_f, k, aligned):
    late = {"name": "lognormal", "median_seconds": 0.3, "sigma": 0.8}
    env = vec_env(2, t_f=t_f, k=k, frames=FRAMES, allow_lookahead=True, latency=late)
    episodes = env.source.fixed(2, seed=1)
    before = emitted(env, episodes, k, aligned)
    call = 30 // k if k < 25 else 1
    visible = min(max(call * k + t_f, 0), FRAMES)
    changed = emitted(env, [with_other_future(episode, visible) for episode in episodes], k, aligned)
    kept = (call + 1) * k
    assert np.array_equal(before[:, :kept], changed[:, :kept])
    # And what becomes visible later does matter, or the test would say nothing.
    if visible + k <= FRAMES - max(-t_f, 0) - k:
        assert not np.array_equal(before[:, kept:], changed[:, kept:])


@pytest.mark.parametrize("t_f", [-25, 0, 25])
@pytest.mark.parametrize("k", [1, 5, 25])
@pytest.mark.parametrize("aligned", [0, 3])
def test_no_gradient_from_hidden_inputs(t_f, k, aligned, monkeypatch):
    decoder = tiny_decoder(aligned_frames=aligned, aligned_past=aligned)
    heard, played = torch.randint(0, 16, (2, 1, FRAMES, 2), generator=torch.Generator().manual_seed(0))
    leaf = decoder.latents(heard).detach().requires_grad_(True)
    latents = decoder.latents
    monkeypatch.setattr(decoder, "latents", lambda codes: leaf if codes is heard else latents(codes))
    logits = decoder(heard, played, torch.tensor([1]), torch.tensor([t_f]), torch.tensor([k])).logits
    for call in range(0, -(-FRAMES // k), max(1, 15 // k)):
        (gradient,) = torch.autograd.grad(logits[:, call * k : (call + 1) * k].square().sum(), leaf, retain_graph=True)
        visible = min(max(call * k + t_f, 0), FRAMES)
        assert (gradient[:, visible:] == 0).all()
        assert visible == 0 or gradient[:, :visible].abs().sum() > 0
