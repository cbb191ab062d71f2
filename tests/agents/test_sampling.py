import math

import pytest
import torch

from jamgym.errors import ConfigError
from jamgym_agents.sampling import Sampling, draw, guide, transform

LOGITS = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 5.0, 4.0]])


def test_temperature_by_hand():
    assert torch.allclose(transform(LOGITS, Sampling(temperature=2.0)).exp(), (LOGITS / 2).softmax(-1))


def test_temperature_zero_takes_the_likeliest():
    log_p = transform(LOGITS, Sampling(temperature=0.0))
    assert log_p.exp().tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    assert draw(log_p, torch.Generator().manual_seed(3)).tolist() == [0, 2]


@pytest.mark.parametrize("temperature", [1e-45, 1e-39, 1e-7])
def test_a_temperature_that_is_hardly_above_zero_takes_the_likeliest(temperature):
    log_probs = transform(torch.tensor([[1.0, 3.0, 2.0]]), Sampling(temperature=temperature))
    assert log_probs.tolist() == [[-math.inf, 0.0, -math.inf]]


def test_what_leaves_nothing_to_draw():
    assert Sampling(temperature=0.0).deterministic and Sampling(top_k=1).deterministic
    assert not Sampling(temperature=1e-6).deterministic and not Sampling(top_k=2, top_p=0.1).deterministic


def test_top_k_and_top_p_keep_the_right_codes():
    assert (transform(LOGITS, Sampling(top_k=2)) > -torch.inf).tolist() == [[True, True, False, False]] + [
        [False, False, True, True]
    ]
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    for top_p, kept in ((0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)):
        log_p = transform(probabilities.log().double(), Sampling(top_p=top_p))
        assert int((log_p > -torch.inf).sum()) == kept, top_p
        assert log_p.exp().sum() == pytest.approx(1.0, abs=1e-6)
        assert torch.allclose(log_p.exp()[0, :kept], probabilities[0, :kept] / probabilities[0, :kept].sum())


@pytest.mark.parametrize("guidance, expected", [(0.0, [3.0, 0.0]), (1.0, [1.0, 2.0]), (3.0, [-3.0, 6.0])])
def test_guidance_goes_from_without_to_with_and_beyond(guidance, expected):
    guided = guide(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]), guidance)
    assert guided.tolist() == expected and Sampling(guidance=guidance).guided == (guidance != 1)


def test_draws_follow_the_distribution():
    log_p = transform(LOGITS[:1], Sampling(temperature=1.5, top_k=3)).expand(20_000, -1)
    counts = torch.bincount(draw(log_p, torch.Generator().manual_seed(0)), minlength=4) / 20_000
    assert torch.allclose(counts, log_p[0].exp(), atol=0.015) and counts[3] == 0


@pytest.mark.parametrize("number", [0.0, 0.5, 1.0])
def test_no_number_draws_an_excluded_code(number, monkeypatch):
    # 1.0 stands for a number that rounding has lifted to the total.
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, number))
    probabilities = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    drawn = draw(probabilities.log(), None)
    assert drawn.tolist() == [{0.0: 1, 0.5: 3, 1.0: 3}[number], 2]


def test_what_is_not_finite_still_draws_a_code_that_exists():
    log_p = torch.full((2, 8), torch.nan)
    log_p[1] = -torch.inf
    assert ((draw(log_p, None) >= 0) & (draw(log_p, None) < 8)).all()


def test_many_rows_draw_independently_and_any_shape():
    log_p = torch.full((3, 5, 64), 1 / 64).log()
    codes = draw(log_p, torch.Generator().manual_seed(1))
    assert codes.shape == (3, 5) and codes.dtype == torch.int64 and len(codes.unique()) > 5
    assert torch.equal(codes, draw(log_p, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"temperature": math.nan},
        {"guidance": -0.5},
        {"guidance": math.inf},
    ],
)
def test_values_without_meaning(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)
