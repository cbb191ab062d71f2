import math

import pytest
import torch

from jamgym_agents.ppo import losses

NAN = math.nan


def test_masked_mean_and_whiten_ignore_what_is_masked():
    values, mask = torch.tensor([[1.0, 3.0, NAN]]), torch.tensor([[True, True, False]])
    assert losses.masked_mean(values, mask) == 2.0
    assert torch.allclose(losses.whiten(values, mask), torch.tensor([[-1.0, 1.0, 0.0]]), atol=1e-5)
    assert losses.masked_mean(values, torch.zeros(1, 3, dtype=torch.bool)) == 0.0


def test_policy_loss_by_hand():
    # Ratios 1.5 and 0.5, clip 0.2: the good token is cut at 1.2, the bad one is not helped by going further down.
    new = torch.tensor([1.5, 0.5]).log().view(1, 2, 1)
    old = torch.zeros_like(new)
    mask = torch.ones_like(new, dtype=torch.bool)
    loss, figures = losses.clipped_policy_loss(new, old, torch.tensor([1.0, 1.0]).view(1, 2, 1), mask, 0.2)
    assert loss == pytest.approx(-(1.2 + 0.5) / 2)
    loss, _ = losses.clipped_policy_loss(new, old, torch.tensor([-1.0, -1.0]).view(1, 2, 1), mask, 0.2)
    assert loss == pytest.approx((1.5 + 0.8) / 2)
    assert figures["clip_fraction"] == 1.0 and figures["ratio"] == pytest.approx(1.0)
    assert figures["approx_kl"] == pytest.approx((0.5 - math.log(1.5) - 0.5 - math.log(0.5)) / 2)


@pytest.mark.parametrize("poison", [NAN, math.inf, -math.inf])
def test_nan_under_the_mask_changes_neither_losses_nor_gradients(poison):
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    clean = torch.randn(4, 2, 4)
    dirty = clean.clone()
    dirty[:, ~mask] = poison
    results = []
    for source in (clean, dirty):
        _, old, advantages, returns = source
        leaf = source[0].clone().requires_grad_(True)
        loss, figures = losses.clipped_policy_loss(leaf, old, advantages, mask, 0.2)
        loss = loss + losses.value_loss(leaf, returns, mask)
        (gradient,) = torch.autograd.grad(loss, leaf)
        results.append([loss.detach(), gradient, *figures.values()])
        assert (gradient[~mask] == 0).all()
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def gae_by_sums(rewards, values, last, gamma, lam):
    """The definition: a sum of discounted temporal differences for each chunk."""
    following = [*values[1:], last]
    delta = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    count = len(delta)
    return [sum((gamma * lam) ** (j - i) * delta[j] for j in range(i, count)) for i in range(count)]


@pytest.mark.parametrize("last", [0.0, 2.5])
def test_advantages_against_the_closed_form(last):
    torch.manual_seed(1)
    rewards, values = torch.randn(2, 2, 6)
    lengths = torch.tensor([6, 4])
    rewards[1, 4:], values[1, 4:] = NAN, NAN
    ends = torch.tensor([last, -last])
    advantages, returns = losses.generalized_advantages(rewards, values, ends, lengths, 0.9, 0.7)
    for row, length in enumerate(lengths.tolist()):
        expected = gae_by_sums(
            rewards[row, :length].tolist(), values[row, :length].tolist(), float(ends[row]), 0.9, 0.7
        )
        assert torch.allclose(advantages[row, :length], torch.tensor(expected), atol=1e-5)
        assert torch.allclose(returns[row, :length], advantages[row, :length] + values[row, :length])
        assert (advantages[row, length:] == 0).all() and (returns[row, length:] == 0).all()


def test_lambda_one_gives_discounted_returns():
    rewards = torch.tensor([[1.0, 0.0, 2.0]])
    _, returns = losses.generalized_advantages(
        rewards, torch.randn(1, 3), torch.tensor([4.0]), torch.tensor([3]), 0.5, 1.0
    )
    assert torch.allclose(returns, torch.tensor([[1 + 0.25 * 2 + 0.125 * 4, 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4]]))


def test_chunks_to_tokens_by_hand():
    spread = losses.chunks_to_tokens(torch.tensor([[1.0, 2.0]]), k=2, frames=3, codebooks=2)
    assert spread.tolist() == [[[1, 1], [1, 1], [2, 2]]]


def test_exact_kl_by_hand_and_of_itself():
    p, q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.5, 0.25]).log()
    assert losses.exact_kl(p, q) == pytest.approx(0.5 * math.log(2))
    assert losses.exact_kl(p, p) == 0.0 and losses.exact_kl(q, q) == 0.0
    assert losses.entropy(p) == pytest.approx(math.log(2))


def test_the_teachers_divergence_is_least_at_their_mean_or_at_their_geometric_mean():
    torch.manual_seed(0)
    teachers = (2 * torch.randn(6, 5, dtype=torch.float64)).log_softmax(-1)  # after six futures, none of them known
    least = {"forward": teachers.exp().mean(0).log(), "reverse": teachers.mean(0).log_softmax(-1)}
    for kind, best in least.items():
        policy = best.clone().requires_grad_()
        here = losses.teacher_divergence(policy.log_softmax(-1).expand(6, 5), teachers, kind).mean()
        (slope,) = torch.autograd.grad(here, policy)
        assert slope.abs().max() < 1e-12
        other = least["reverse" if kind == "forward" else "forward"]
        assert losses.teacher_divergence(other.expand(6, 5), teachers, kind).mean() > here + 1e-3
    parts = [losses.teacher_divergence(teachers.roll(1, 0), teachers, kind) for kind in ("forward", "reverse", "both")]
    assert torch.allclose(parts[2], (parts[0] + parts[1]) / 2)


def test_k3_agrees_with_the_exact_kl_in_expectation():
    torch.manual_seed(0)
    old, new = (torch.randn(8) * 0.7).log_softmax(-1), (torch.randn(8) * 0.7).log_softmax(-1)
    # All tokens, each weighted by how often the old policy draws it, so nothing is left to chance.
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    expected = 0.0
    for code in range(8):
        one = losses.clipped_policy_loss(
            new[code].view(1, 1, 1), old[code].view(1, 1, 1), torch.ones(1, 1, 1), mask, 0.2
        )
        expected += float(old[code].exp() * one[1]["approx_kl"])
    assert expected == pytest.approx(float(losses.exact_kl(old, new)), abs=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_excluded_codes_give_finite_values_and_gradients(shared):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0], requires_grad=True)
    excluded = torch.tensor([False, False, True, True])
    log_p = logits.masked_fill(excluded, -math.inf).log_softmax(-1)
    other = excluded if shared else torch.tensor([True, False, False, True])
    log_q = torch.tensor([0.0, 1.0, 2.0, 3.0]).masked_fill(other, -math.inf).log_softmax(-1)
    kl, spread = losses.exact_kl(log_p, log_q), losses.entropy(log_p)
    (gradient,) = torch.autograd.grad(kl + spread, logits)
    assert torch.isfinite(kl) and torch.isfinite(spread) and torch.isfinite(gradient).all()
    assert gradient[:2].abs().sum() > 0 and (gradient[2:] == 0).all()
    if not shared:
        # The step that lowers the divergence moves away from the code that q excludes.
        (gradient,) = torch.autograd.grad(
            losses.exact_kl(logits.masked_fill(excluded, -math.inf).log_softmax(-1), log_q), logits
        )
        assert gradient[0] > 0 > gradient[1]
