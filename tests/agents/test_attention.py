import pytest
import torch

from jamgym_agents.attention import Block, rotary_angles, rotate
from jamgym_agents.visibility import attention_masks


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
    angles = rotary_angles(torch.arange(6), 8)
    mask = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, 6, 6)
    q, key, value = layer.project(x, angles)
    many = layer.attend(q, key, value, mask)
    one = layer.attend(q[:, :, 4:5], key, value, mask[:, :, 4:5])
    assert torch.allclose(one, many[:, 4:5], atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_explicit_products_equal_the_fused_kernel(kv_heads):
    layer = block(kv_heads)
    x = torch.randn(2, 6, 32)
    q, key, value = layer.project(x, rotary_angles(torch.arange(6), 8))
    mask = torch.rand(2, 1, 6, 6) < 0.5
    mask |= torch.eye(6, dtype=torch.bool)
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    assert torch.allclose(layer.attend_all(q, key, value, bias), layer.attend(q, key, value, mask), atol=1e-5)


def test_masked_positions_have_no_influence():
    layer = block()
    frames = 5
    x = torch.randn(1, 2 * frames, 32)
    angles = rotary_angles(torch.arange(frames).repeat(2), 8)
    masks = attention_masks(torch.full((1, frames), 2))
    before = layer(x, angles, masks)
    x[:, 2:frames] += 5.0  # input frames that nobody has heard
    x[:, frames + 3 :] += 5.0  # and later output
    after = layer(x, angles, masks)
    same = [*range(2), *range(frames, frames + 3)]
    changed = [*range(2, frames), *range(frames + 3, 2 * frames)]
    assert torch.equal(before[:, same], after[:, same])
    assert ((before - after)[:, changed].abs().amax(2) > 1e-3).all()
