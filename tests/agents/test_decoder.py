import pytest
import torch

from jamgym.errors import ConfigError
from jamgym.testing import ToyCodec
from jamgym_agents.attention import rotary_angles
from jamgym_agents.checkpoint import new_decoder
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig

from .helpers import TINY, tiny_decoder


def inputs(rows=2, frames=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    heard, played = torch.randint(0, 16, (2, rows, frames, 2), generator=generator)
    return heard, played, torch.arange(rows)


def conditions(rows, t_f, k):
    return torch.full((rows,), t_f), torch.full((rows,), k)


def test_shapes():
    heard, played, instrument = inputs()
    output = tiny_decoder()(heard, played, instrument, *conditions(2, 0, 3))
    assert output.logits.shape == (2, 12, 2, 16) and output.hidden.shape == (2, 12, 32)
    assert output.root.shape == output.input_root.shape == (2, 12, 13) and output.chroma.shape == (2, 12, 12)


def test_a_frame_is_predicted_from_earlier_frames_and_its_own_earlier_codes_only():
    decoder = tiny_decoder()
    heard, played, instrument = inputs()
    before = decoder(heard, played, instrument, *conditions(2, 0, 3)).logits
    changed = played.clone()
    changed[:, 6, 1] = (changed[:, 6, 1] + 5) % 16
    after = decoder(heard, changed, instrument, *conditions(2, 0, 3)).logits
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)
    changed[:, 6, 0] = (changed[:, 6, 0] + 5) % 16
    after = decoder(heard, changed, instrument, *conditions(2, 0, 3)).logits
    assert torch.equal(before[:, 6, 0], after[:, 6, 0]) and not torch.allclose(before[:, 6, 1], after[:, 6, 1])


def test_depth_module_conditions_on_the_codes_before():
    decoder = tiny_decoder()
    hidden, codes = torch.randn(3, 32), torch.randint(0, 16, (3, 2))
    logits = decoder.depth_logits(hidden, codes)
    partial = decoder.vectors[0][codes[:, 0]]
    assert torch.allclose(logits[:, 0], decoder.depth.level_logits(hidden, torch.zeros(3, 8), 0))
    assert torch.allclose(logits[:, 1], decoder.depth.level_logits(hidden, partial, 1))


def test_instrument_matters():
    decoder = tiny_decoder()
    heard, played, instrument = inputs()
    one = decoder(heard, played, instrument, *conditions(2, 0, 3)).logits
    two = decoder(heard, played, instrument + 2, *conditions(2, 0, 3)).logits
    assert not torch.allclose(one, two, atol=1e-3)


def test_hidden_history_has_no_influence():
    decoder = tiny_decoder()
    heard, played, instrument = inputs()
    hidden = torch.zeros(2, 11, dtype=torch.bool)
    hidden[:, 3:6] = True
    changed = played.clone()
    changed[:, 3:6] = (changed[:, 3:6] + 7) % 16
    one, two = (
        decoder.trunk(heard, codes, instrument, *conditions(2, -2, 3), history_hidden=hidden)[1]
        for codes in (played, changed)
    )
    assert torch.equal(one, two)
    shown = decoder.trunk(heard, changed, instrument, *conditions(2, -2, 3))[1]
    assert not torch.allclose(one[:, 6:], shown[:, 6:], atol=1e-3)


def test_hidden_history_gets_no_gradient():
    decoder = tiny_decoder()
    heard, played, instrument = inputs()
    leaf = decoder.latents(played).sum(-2).detach().requires_grad_(True)
    hidden = torch.zeros(2, 11, dtype=torch.bool)
    hidden[:, 3:6] = True
    original, calls = decoder.embed_output, []
    decoder.embed_output = torch.nn.Module()
    decoder.embed_output.forward = lambda x: calls.append(1) or original(leaf[:, :-1])
    _, states = decoder.trunk(heard, played, instrument, *conditions(2, -2, 3), history_hidden=hidden)
    states.square().sum().backward()
    assert calls and (leaf.grad[:, 3:6] == 0).all() and (leaf.grad[:, [0, 1, 2, 6, 7]].abs().sum(-1) > 0).all()


def test_wrong_vectors_are_refused():
    with pytest.raises(ValueError, match="shape"):
        AccompanimentDecoder(TINY, torch.zeros(2, 3, 4))


def test_new_decoder_takes_its_sizes_from_the_codec():
    decoder = new_decoder(
        DecoderConfig(dim=32, layers=1, heads=2, latent_dim=8), ToyCodec(num_codebooks=3, cardinality=9)
    )
    assert (decoder.config.num_codebooks, decoder.config.cardinality) == (3, 9)
    assert decoder.vectors.sum(0).std() == pytest.approx(1.0, abs=1e-4)
    codec = ToyCodec()
    codec.codebook_vectors = torch.randn(2, 16, 5).numpy()
    assert new_decoder(TINY, codec).config.latent_dim == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_heads": 3}, "heads must be a multiple of kv_heads"),
        ({"dim": 30}, "dim must be a multiple of 2"),
        ({"dim": 12}, "dim must be a multiple of 2"),
        ({"layers": 0}, "layers is 0"),
        ({"heads": -4}, "heads is -4"),
    ],
)
def test_sizes_that_no_network_can_have_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DecoderConfig(**settings)


@pytest.mark.parametrize(("window", "sinks"), [(4, 4), (0, 0), (10, -1), (None, -1)])
def test_a_window_without_room_is_refused(window, sinks):
    with pytest.raises(ConfigError, match="window is"):
        DecoderConfig(window=window, sinks=sinks)


def test_the_sinks_are_seen_from_the_last_place_of_the_first_window():
    decoder = tiny_decoder(window=8, sinks=2)
    positions, heads = torch.arange(12), decoder.config.heads
    own, near = (rotary_angles(places, decoder.head_dim) for places in (positions, positions.clamp_max(7)))
    for found, at_own, at_near in zip(decoder.angles(positions, 12), own, near, strict=True):
        assert len(found) == 2 * heads + decoder.config.kv_heads
        assert torch.equal(found[:heads], at_near.expand(heads, -1, -1))
        assert torch.equal(found[heads:], at_own.expand(len(found) - heads, -1, -1))
    # While all fits into the window, there is one place for all.
    for found, at_own in zip(decoder.angles(positions[:8], 8), own, strict=True):
        assert torch.equal(found[0], at_own[:8]) and len(found) == 1
