import pytest
import torch
from torch.nn import functional as F

from jamgym_agents.attention import Block, Sinks, rotary_angles, rotate
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
    cos, sin = rotary_angles(torch.arange(6), 8)
    bias = additive(torch.ones(6, 6, dtype=torch.bool).tril())
    q, key, value = layer.project(x, (cos, sin))
    many = layer.attend(q, key, value, bias, (cos, sin))
    one = layer.attend(q[:, :, 4:5], key, value, bias[4:5], (cos[4:5], sin[4:5]))
    assert torch.allclose(one, many[:, 4:5], atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_explicit_products_equal_the_fused_kernel(kv_heads):
    layer = block(kv_heads)
    angles = rotary_angles(torch.arange(6), 8)
    q, key, value = layer.project(torch.randn(2, 6, 32), angles)
    mask = torch.rand(2, 1, 6, 6) < 0.5
    mask |= torch.eye(6, dtype=torch.bool)
    keys, values = (part.repeat_interleave(4 // kv_heads, dim=1) for part in (key, value))
    expected = F.scaled_dot_product_attention(rotate(q, angles), keys, values, attn_mask=mask)
    mixed = layer.attend(q, key, value, additive(mask), angles)
    assert torch.allclose(mixed, expected.transpose(1, 2).reshape(2, 6, 32), atol=1e-5)


def test_sinks_are_seen_from_their_own_distance():
    layer = block()
    angles = rotary_angles(torch.arange(6), 8)
    q, key, value = layer.project(torch.randn(1, 6, 32), angles)
    bias = additive(torch.tensor([[True, False, False, False, False, True]]))
    near = rotary_angles(torch.tensor([3]), 8)
    query = q[:, :, 5:]
    far = layer.attend(query, key, value, bias, near, Sinks.of(near, near, slice(2)))
    # The same as a query at frame 3 for the sink in slot 0; slot 5 is seen from where the query stands.
    assert torch.allclose(far, layer.attend(query, key, value, bias, near), atol=1e-6)
    own = (angles[0][5:], angles[1][5:])
    mixed = layer.attend(query, key, value, bias, own, Sinks.of(own, near, slice(2)))
    assert not torch.allclose(mixed, layer.attend(query, key, value, bias, own), atol=1e-4)
    score = (rotate(query, near) * key[:, :, :1]).sum(-1), (rotate(query, own) * key[:, :, 5:]).sum(-1)
    weights = (torch.stack(score, dim=-1) * 8**-0.5).softmax(-1)
    expected = weights[..., :1] * value[:, :, :1] + weights[..., 1:] * value[:, :, 5:]
    assert torch.allclose(mixed, expected.transpose(1, 2).reshape(1, 1, 32), atol=1e-5)


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
    angles = rotary_angles(torch.arange(frames), 8)
    masks = attention_masks(torch.full((1, frames), 2))
    before = layer(x, angles, masks)
    x[:, 2:frames] += 5.0  # input frames that nobody has heard
    x[:, frames + 3 :] += 5.0  # and later output
    after = layer(x, angles, masks)
    same = [*range(2), *range(frames, frames + 3)]
    changed = [*range(2, frames), *range(frames + 3, 2 * frames)]
    assert torch.equal(before[:, same], after[:, same])
    assert ((before - after)[:, changed].abs().amax(2) > 1e-3).all()
