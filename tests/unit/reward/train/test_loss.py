"""The loss of a pair, against numbers worked by hand."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from reward.train.loss import preference_loss


def test_hand_worked_numbers():
    # left − right = 1, 1, 0, 3: −log(1/(1+e⁻¹)), −log(1/(1+e)), log 2, and 0.75 · 0.0486 + 0.25 · 3.0486
    left, right = torch.tensor([2.0, 0.0, 5.0, 1.0]), torch.tensor([1.0, -1.0, 5.0, -2.0])
    loss = preference_loss(left, right, torch.tensor([1.0, 0.0, 0.5, 0.75]))
    soft = 0.75 * log(1 + exp(-3)) + 0.25 * log(1 + exp(3))
    expected = [log(1 + exp(-1)), log(1 + exp(1)), log(2), soft]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_a_tie_is_cheapest_where_the_rewards_are_equal():
    p = torch.full((3,), 0.5)
    apart = preference_loss(torch.tensor([1.0, 0.0, -1.0]), torch.zeros(3), p)
    assert apart.argmin() == 1
    assert apart[0] == apart[2]


def test_the_least_loss_is_at_the_labels_probability():
    p = torch.tensor([0.8])
    margin = torch.tensor([log(0.8 / 0.2)], requires_grad=True)
    preference_loss(margin, torch.zeros(1), p).sum().backward()
    assert margin.grad.abs().item() < 1e-6


def test_swapping_the_images_changes_nothing_but_the_side():
    generator = torch.Generator().manual_seed(0)
    left, right = (20 * torch.randn(1000, generator=generator) for _ in range(2))
    p = torch.rand(1000, generator=generator)
    gradients = []
    for first, second, p_first in ((left, right, p), (right, left, 1 - p)):
        first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
        loss = preference_loss(first, second, p_first)
        gradients.append((loss.detach(), *torch.autograd.grad(loss.sum(), (first, second))))
    (loss, to_left, to_right), (swapped, to_first, to_second) = gradients
    assert torch.equal(loss, swapped)
    assert torch.equal(to_left, to_second)
    assert torch.equal(to_right, to_first)


def test_far_logits_stay_finite():
    loss = preference_loss(torch.tensor([1e4, -1e4]), torch.tensor([-1e4, 1e4]), torch.tensor([1.0, 1.0]))
    assert loss.tolist() == [0.0, 2e4]


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="Shapes differ"):
        preference_loss(torch.zeros(3), torch.zeros(3, 1), torch.zeros(3))
