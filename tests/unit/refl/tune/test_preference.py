"""The losses of learning from preferences, against numbers worked out by hand and formulas written here."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from refl.tune.preference import (
    choose_ends,
    compute_group_loss,
    compute_log_probability,
    compute_pair_loss,
    compute_ratio_loss,
    compute_step_divergence,
    normalise_rewards,
)
from tests.unit.refl.conftest import make_micro_restorer

BETA = 5000.0


def make_errors(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_dpo_at_the_reference_is_log_2_and_lowers_the_winners_error_and_raises_the_losers() -> None:
    errors = make_errors(0.3, 0.3, 0.4, 0.4)
    both = errors.view(2, 2)
    losses = compute_pair_loss(both, both.detach(), torch.tensor([1.0, 0.0], dtype=torch.float64), BETA)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2)
    losses.sum().backward()
    # d/de of -log σ(-β/2 (e - r)) at e = r is β/4; a wins the first pair, b the second
    assert errors.grad is not None
    assert errors.grad.tolist() == pytest.approx([BETA / 4, -BETA / 4, -BETA / 4, BETA / 4])


def test_dpo_by_hand_away_from_the_reference() -> None:
    errors, reference = torch.tensor([[0.30], [0.40]]), torch.tensor([[0.31], [0.38]])
    # a's error fell by 0.01, b's rose by 0.02: the margin is -2/2 · (-0.01 - 0.02) = 0.03
    for p_a in (1.0, 0.0, 0.7):
        expected = p_a * math.log(1 + math.exp(-0.03)) + (1 - p_a) * math.log(1 + math.exp(0.03))
        found = compute_pair_loss(errors, reference, torch.tensor([p_a]), 2.0)
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_tie_pulls_neither_way_at_the_reference() -> None:
    errors = make_errors(0.3, 0.4)
    compute_pair_loss(errors.view(2, 1), errors.detach().view(2, 1), torch.tensor([0.5]).double(), BETA).backward()
    assert errors.grad is not None
    assert errors.grad.tolist() == pytest.approx([0, 0])


def test_group_dpo_of_plus_and_minus_one_is_dpo() -> None:
    generator = torch.Generator().manual_seed(0)
    errors, reference = torch.rand(2, 5, 2, generator=generator)
    group = compute_group_loss(errors, reference, torch.tensor([[1.0, -1.0]]).expand(5, 2), 3.0)
    torch.testing.assert_close(group, compute_pair_loss(errors.T, reference.T, torch.ones(5), 3.0))
    two = normalise_rewards(torch.tensor([[0.2, 0.1], [-7.0, 3.0], [5.0, 5.0]]))
    assert two.tolist() == [[pytest.approx(1), pytest.approx(-1)], [pytest.approx(-1), pytest.approx(1)], [0, 0]]


def test_group_dpo_pulls_by_the_rewards_in_a_group() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64)
    advantages = normalise_rewards(rewards)
    # mean 3, squares 4 1 0 9: deviation √3.5
    assert advantages[0].tolist() == pytest.approx([value / math.sqrt(3.5) for value in (-2, -1, 0, 3)])
    errors = make_errors(0.1, 0.2, 0.3, 0.4)
    loss = compute_group_loss(errors.view(1, 4), errors.detach().view(1, 4), advantages, BETA)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert errors.grad is not None
    assert errors.grad.tolist() == pytest.approx((BETA / 4 * advantages[0]).tolist())


@pytest.mark.parametrize("value", [0.0, 1e-3, -24.5, 1e6])
def test_rewards_that_differ_by_rounding_alone_teach_nothing(value: float) -> None:
    rewards = torch.tensor([[value, value * (1 + 1e-7), value]])
    assert normalise_rewards(rewards).abs().max() == 0


def test_the_ends_of_a_group_are_its_best_and_its_worst() -> None:
    rewards = torch.tensor([[0.0, 5.0, 2.0, -1.0, 5.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert choose_ends(rewards, 2).tolist() == [[1, 4, 0, 3], [0, 1, 3, 4]]


def test_grpo_before_an_update_has_ratio_1_and_the_gradient_of_reinforce() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 2, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    sigma, advantages = 0.4, torch.tensor([1.5, -0.5, -1.0], dtype=torch.float64)
    value = (mean + sigma * torch.randn(mean.shape, generator=generator, dtype=torch.float64)).detach()
    log_probability = compute_log_probability(value, mean, sigma)
    losses, ratio = compute_ratio_loss(log_probability, log_probability.detach(), advantages, 1e-4)
    assert ratio.tolist() == [1, 1, 1]
    (found,) = torch.autograd.grad(losses.sum(), mean)
    # REINFORCE: -A · ∂ log p / ∂ mean, with ∂ log p / ∂ mean = (x - mean) / σ², here per number
    expected = -advantages.view(3, 1, 1, 1) * (value - mean.detach()) / sigma**2 / 8
    torch.testing.assert_close(found, expected)


def test_grpo_clips_what_has_gone_far_enough_and_nothing_that_has_to_come_back() -> None:
    log_probability = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])
    losses, ratio = compute_ratio_loss(log_probability, torch.zeros(4), advantages, 0.2)
    up, down = math.exp(0.5), math.exp(-0.5)
    assert ratio.tolist() == pytest.approx([up, down, up, down])
    assert losses.tolist() == pytest.approx([-1.2, 0.8, up, -down])
    losses.sum().backward()
    assert log_probability.grad is not None
    assert log_probability.grad.tolist() == pytest.approx([0, 0, up, -down])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_a_steps_log_probability_is_that_of_the_published_formula(prediction: str, eta: float) -> None:
    """DDIM's own, written here with alphas as arXiv:2010.02502 has it, and torch's normal distribution."""
    restorer = make_micro_restorer()
    restorer.use = type(restorer.use)(**{**vars(restorer.use), "prediction": prediction})
    generator = torch.Generator().manual_seed(1)
    latents, output, noise = torch.randn(3, 2, 4, 8, 8, generator=generator)
    for timestep, following in restorer.plan_steps(10):
        a, b = float(restorer.alphas[timestep]), float(restorer.alphas[max(0, following)])
        noise_pred = output if prediction == "epsilon" else a**0.5 * output + (1 - a) ** 0.5 * latents
        x0 = (latents - (1 - a) ** 0.5 * noise_pred) / a**0.5
        sigma = eta * ((1 - b) / (1 - a)) ** 0.5 * (1 - a / b) ** 0.5
        expected_mean = b**0.5 * x0 + (1 - b - sigma**2) ** 0.5 * noise_pred
        after = restorer.step(latents, timestep, following, output, eta, noise)
        mean, found_sigma = restorer.distribute_step(latents, timestep, following, output, eta)
        torch.testing.assert_close(mean, expected_mean, rtol=1e-4, atol=1e-4)
        assert found_sigma == pytest.approx(sigma, rel=1e-4)
        expected = Normal(expected_mean.double(), sigma).log_prob(after.double()).mean(dim=(1, 2, 3))
        found = compute_log_probability(after, mean, found_sigma).double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)
        as_sampled = compute_log_probability(noise, torch.zeros_like(noise), 1.0) - math.log(found_sigma)
        torch.testing.assert_close(found.float(), as_sampled, rtol=1e-3, atol=1e-3)


def test_the_divergence_is_that_of_two_normal_distributions_and_0_at_first() -> None:
    one, other = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.distributions.kl_divergence(Normal(one, 0.7), Normal(other, 0.7)).mean(dim=(1, 2, 3))
    torch.testing.assert_close(compute_step_divergence(one, other, 0.7), expected)
    assert compute_step_divergence(one, one, 0.7).tolist() == [0, 0, 0]
