import numpy as np
import pytest
import torch

from jamgym.testing import ToyCodec, ToyCorpus
from jamgym_agents.decoder_policy import DecoderPolicy
from jamgym_agents.mle.live_sample import live_mix, play_live
from jamgym_agents.mle.token_cache import load_tokens

from .helpers import tiny_decoder, vec_env


@pytest.mark.parametrize(("t_f", "k"), [(-5, 1), (-5, 5), (3, 4)])
def test_plays_as_the_policy_does_in_the_environment(t_f, k):
    env = vec_env(1, t_f=t_f, k=k, frames=22, allow_lookahead=True)
    observation, _ = env.reset(seed=0)
    heard = torch.from_numpy(env.episodes[0].input_codes[None, :22].astype(np.int64))
    policy = DecoderPolicy(ToyCodec(), k, decoder=tiny_decoder(), seed=7)
    instrument = torch.as_tensor(np.array(observation["instrument"])).reshape(-1).long()
    emitted = []
    for _ in range(env.timing.num_calls):
        emitted.append(policy.act(observation))
        observation = env.step(emitted[-1])[0]
    played = play_live(tiny_decoder(), heard, instrument, t_f, k, seed=7)
    assert np.array_equal(played.numpy(), np.concatenate(emitted, 1)[:, :22])


def test_the_mix_holds_what_was_heard_and_what_was_played(tmp_path):
    tokens = load_tokens(ToyCorpus(songs=2, seconds=2.0), ToyCodec(), "train", folder=tmp_path)
    batch = tokens.batch(np.random.default_rng(0), 3, 20)
    decoder = tiny_decoder().train()
    mix = live_mix(decoder, ToyCodec(), batch, -5, 5)
    assert decoder.training and mix.shape == (20 * 640,) and mix.dtype == np.float32 and 0 < np.abs(mix).max() <= 1
    played = play_live(decoder.eval(), batch.heard[:1], batch.instrument[:1], -5, 5)
    parts = ToyCodec().decode(torch.cat([batch.heard[:1], played]).numpy().astype(np.int16))
    expected = parts.sum(0) / max(1.0, np.abs(parts.sum(0)).max())
    assert np.abs(parts[0]).max() > 0 and np.abs(parts[1]).max() > 0 and np.allclose(mix, expected, atol=1e-6)
