import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jamgym_agents.eight_bit import as_eight_bits, from_eight_bits, round_to_eight_bits, to_eight_bits


@given(rows=st.integers(1, 5), columns=st.integers(1, 9), power=st.integers(-30, 30), seed=st.integers(0, 1000))
def test_a_matrix_comes_back_within_half_a_step_of_its_row(rows, columns, power, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    found = from_eight_bits(to_eight_bits({"a": matrix}))["a"]
    step = matrix.abs().amax(1, keepdim=True) / 127
    assert ((found - matrix).abs() <= 0.5001 * step).all()


def test_rows_of_zeros_and_what_is_no_matrix():
    tensors = {"zeros": torch.zeros(2, 3), "line": torch.tensor([0.1, 2.0]), "block": torch.ones(1, 2, 2) / 3}
    packed = to_eight_bits(tensors)
    assert packed["zeros"].dtype == torch.int8 and packed["zeros.scale"].shape == (2,)
    assert packed["line"].dtype == packed["block"].dtype == torch.float16
    found = from_eight_bits(packed)
    assert list(found) == list(tensors) and not found["zeros"].any()
    assert torch.equal(found["block"], tensors["block"].half().float())


def test_tensors_of_other_files_are_only_converted():
    tensors = {"a.scale": torch.ones(3).half(), "a": torch.ones(3, 2).half()}
    found = from_eight_bits(tensors)
    assert set(found) == {"a", "a.scale"} and all(value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize("scale", [None, torch.tensor(1.0), torch.ones(1), torch.ones(3)])
def test_scales_that_do_not_fit(scale):
    packed = to_eight_bits({"a": torch.ones(2, 4)})
    if scale is None:
        del packed["a.scale"]
    else:
        packed["a.scale"] = scale
    with pytest.raises(ValueError, match="a is stored in eight bits without one scale"):
        from_eight_bits(packed)


def test_weights_that_are_not_finite_are_not_stored():
    with pytest.raises(ValueError, match="a has weights that are not finite"):
        to_eight_bits({"a": torch.tensor([[1.0, float("nan")]])})
    assert to_eight_bits({"a": torch.zeros(2, 0)})["a"].shape == (2, 0)


@torch.no_grad()
def test_what_was_rounded_is_read_in_eight_bits_and_nothing_else():
    module = torch.nn.Linear(9, 5)
    assert as_eight_bits(module.weight) is None
    round_to_eight_bits(module)
    whole, scale = as_eight_bits(module.weight)
    assert whole.dtype == torch.int8 and whole.abs().amax(1).tolist() == [127] * 5
    torch.testing.assert_close(whole * scale.unsqueeze(1), module.weight)
    module.weight[2, 3] += scale[2] / 3
    assert as_eight_bits(module.weight) is None
