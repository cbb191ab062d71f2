import pytest
import torch
from torch.nn import functional as F

from jamgym_agents.attention import Block, rotary_angles, rotate
from jamgym_agents.visibility import additive, attention_masks


def block(kv_heads=1):
    torch.manual_seed(0)
    return Block(dim=32, heads=4, kv_heads=kv_heads, dropout=0.5).eval()


def test_rotation_keeps_length_and_depends_on_distance_only():
    q, key = torch.randn(2, 1, 1, 1, 8)

    def score(at, other):
        angles = [rotary_angles(torch.tensor([time]), 8) for time in (at, other)]
        return (rotate(q, angles[0]) * rotate(key, angles[1])).sum()

    assert rotate(q, rotary_angles(torch.tensor([7]), 8)).norm() == pytest.approx(float(q.norm()), rel=1e-5)
    assert score(12, 9) == pytest.approx(float(score(103, 100)), abs=1e-4)
    assert abs(float(score(12, 9) - score(12, 4))) > 1e-3


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_one_query_equals_the_same_query_among_many(kv_heads):
    layer = block(kv_heads)
    x = torch.randn(2, 6, 32)
    bias = additive(torch.ones(6, 6, dtype=torch.bool).tril())
    q, key, value, _ = layer.project(x, rotary_angles(torch.arange(6)[None], 8))
    many = layer.attend(q, key, value, bias)
    one = layer.attend(q[:, :, 4:5], key, value, bias[4:5])
    assert torch.allclose(one, many[:, 4:5], atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_explicit_products_equal_the_fused_kernel(kv_heads):
    layer = block(kv_heads)
    x, angles = torch.randn(2, 6, 32), rotary_angles(torch.arange(6)[None], 8)
    q, key, value, _ = layer.project(x, angles)
    # Queries as they come, turned by hand and scaled by the kernel.
    raw = layer.qkv(layer.norm_attention(x)).view(2, 6, 4 + 2 * kv_heads, 8).transpose(1, 2)[:, :4]
    mask = torch.rand(2, 1, 6, 6) < 0.5
    mask |= torch.eye(6, dtype=torch.bool)
    keys, values = (part.repeat_interleave(4 // kv_heads, dim=1) for part in (key, value))
    expected = F.scaled_dot_product_attention(rotate(raw, angles), keys, values, attn_mask=mask)
    mixed = layer.attend(q, key, value, additive(mask))
    assert torch.allclose(mixed, expected.transpose(1, 2).reshape(2, 6, 32), atol=1e-5)


def test_sinks_are_seen_from_the_near_place():
    layer = block()
    x = torch.randn(1, 6, 32)
    places = torch.arange(6)[None]
    q, key, value, near = layer.project(x, layer.both_angles(places[0], places[0].clamp_max(3)))
    assert near is not None and torch.allclose(near[:, :, :4], q[:, :, :4])
    moved = layer.project(x, rotary_angles(places.clamp_max(3), 8))[0]
    assert torch.allclose(near, moved) and not torch.allclose(near[:, :, 5], q[:, :, 5], atol=1e-3)
    # The last frame sees one sink, from its near place, and itself, from its own.
    bias = additive(torch.tensor([[True, False, False, False, False, True]]))
    mixed = layer.attend(q[:, :, 5:], key, value, bias, near[:, :, 5:], (slice(2),))
    score = (near[:, :, 5:] * key[:, :, :1]).sum(-1), (q[:, :, 5:] * key[:, :, 5:]).sum(-1)
    weights = (torch.stack(score, dim=-1)).softmax(-1)
    expected = weights[..., :1] * value[:, :, :1] + weights[..., 1:] * value[:, :, 5:]
    assert torch.allclose(mixed, expected.transpose(1, 2).reshape(1, 1, 32), atol=1e-5)
    assert not torch.allclose(mixed, layer.attend(q[:, :, 5:], key, value, bias), atol=1e-4)


def test_angles_stay_exact_after_a_day():
    day = 25 * 86_400
    early, late = ([rotary_angles(torch.tensor([start + offset]), 64) for offset in (0, 3)] for start in (100, day))

    def score(pair):
        return float((rotate(torch.ones(1, 1, 1, 64), pair[0]) * rotate(torch.ones(1, 1, 1, 64), pair[1])).sum())

    assert score(late) == pytest.approx(score(early), abs=1e-3)


def test_masked_positions_have_no_influence():
    layer = block()
    frames = 5
    x = torch.randn(1, 2 * frames, 32)
    angles = rotary_angles(torch.arange(frames).repeat(2)[None], 8)
    masks = attention_masks(torch.full((1, frames), 2))
    before = layer(x, angles, masks)
    x[:, 2:frames] += 5.0  # input frames that nobody has heard
    x[:, frames + 3 :] += 5.0  # and later output
    after = layer(x, angles, masks)
    same = [*range(2), *range(frames, frames + 3)]
    changed = [*range(2, frames), *range(frames + 3, 2 * frames)]
    assert torch.equal(before[:, same], after[:, same])
    assert ((before - after)[:, changed].abs().amax(2) > 1e-3).all()
