import pytest
import torch

from jamgym.codecs.quantizer import ResidualVectorQuantizer


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    return ResidualVectorQuantizer(num_codebooks=3, cardinality=16, dim=4)


def test_each_code_is_the_nearest_entry_to_what_is_left(quantizer):
    latents = torch.randn(2, 5, 4) * 0.2
    codes = quantizer.encode(latents)
    assert codes.shape == (2, 5, 3) and codes.dtype == torch.int64
    residual = latents.reshape(-1, 4)
    for q in range(3):
        nearest = torch.cdist(residual, quantizer.codebooks[q]).argmin(1)
        assert torch.equal(nearest, codes.reshape(-1, 3)[:, q])
        residual = residual - quantizer.codebooks[q][nearest]
    assert torch.allclose(quantizer.decode(codes).reshape(-1, 4), latents.reshape(-1, 4) - residual, atol=1e-6)


def test_forward_agrees_with_encode_and_passes_gradients_through(quantizer):
    quantizer.eval()
    latents = torch.randn(2, 5, 4, requires_grad=True)
    before = quantizer.codebooks.clone()
    quantized, commitment, live = quantizer(latents)
    assert torch.allclose(quantized, quantizer.decode(quantizer.encode(latents.detach())), atol=1e-6)
    assert live.shape == (3,) and commitment > 0
    (gradient,) = torch.autograd.grad(quantized.sum(), latents)
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert torch.equal(before, quantizer.codebooks), "evaluation moved the codebooks"


def test_codebooks_follow_the_data():
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(num_codebooks=1, cardinality=4, dim=2)
    centres = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    quantizer.codebooks[0] = 0.3 * centres
    quantizer.cluster_size.fill_(1.0)
    quantizer.cluster_sum.copy_(quantizer.codebooks)
    for _ in range(200):
        quantizer((centres[torch.randint(4, (64,))] + 0.05 * torch.randn(64, 2)).unsqueeze(0))
    assert (centres - quantizer.codebooks[0]).norm(dim=1).max() < 0.1


def test_dead_codes_restart_on_inputs():
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(num_codebooks=1, cardinality=8, dim=2)
    quantizer.codebooks[0, 1:] = 1e3  # nothing will ever choose these
    quantizer.cluster_size.fill_(1.0)
    quantizer.cluster_sum.copy_(quantizer.codebooks)
    data = torch.randn(1, 64, 2)
    for _ in range(100):
        _, _, live = quantizer(data)
    assert quantizer.codebooks.abs().max() < 10
    assert len(quantizer.encode(data).unique()) == 8 and live[0] > 0.8
