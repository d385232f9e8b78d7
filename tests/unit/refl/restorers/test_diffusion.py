"""The diffusion restorer's arithmetic against formulas written anew, its seeds, its gradients, its types."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.testing import assert_close

from refl.restorers.diffusion import DiffusionRestorer
from refl.restorers.latent import make_schedule
from refl.restorers.surface import draw_ahead, make_generators


def compute_alphas(zero_terminal_snr: bool) -> list[float]:
    """The share of signal after every timestep, in plain floats; rescaled as in algorithm 1 of arXiv:2305.08891."""
    product, alphas = 1.0, []
    for step in range(1000):
        beta = (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * step / 999) ** 2
        product *= 1 - beta
        alphas.append(product)
    if not zero_terminal_snr:
        return alphas
    roots = [math.sqrt(alpha) for alpha in alphas]
    return [((root - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for root in roots]


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_the_schedule_is_the_formulas(zero_terminal_snr):
    schedule = make_schedule("v_prediction", zero_terminal_snr)
    expected = torch.tensor(compute_alphas(zero_terminal_snr), dtype=torch.float64)
    assert_close(schedule.alphas_cumprod.double(), expected, rtol=1e-4, atol=1e-6)
    assert (schedule.alphas_cumprod[-1] == 0) == zero_terminal_snr


def test_steps_count_down_to_one_and_end_at_the_schedules_end(make_micro):
    assert make_micro(start_fraction=1.0).plan_steps(4) == [(751, 501), (501, 251), (251, 1), (1, -1)]
    assert make_micro(start_fraction=0.5).plan_steps(4) == [(251, 1), (1, -1)]
    assert make_micro(start_fraction=0.01).plan_steps(4) == [(1, -1)]
    for wrong in (0, 1001):
        with pytest.raises(ValueError, match="steps must be 1 to 1000"):
            make_micro().plan_steps(wrong)


def test_a_rescaled_schedule_starts_at_its_last_timestep(make_micro):
    restorer = make_micro(start_fraction=1.0)
    object.__setattr__(restorer.use, "zero_terminal_snr", True)
    assert restorer.plan_steps(4) == [(999, 749), (749, 499), (499, 249), (249, -1)]


def test_v_noise_and_x0_agree_with_their_definitions(make_micro):
    restorer = make_micro()
    timesteps = torch.tensor([0, 251, 751])
    x0, noise = torch.randn(2, 3, 3, 4, 4).unbind(0)
    alphas = torch.tensor([compute_alphas(False)[int(t)] for t in timesteps]).view(3, 1, 1, 1)
    noisy = alphas.sqrt() * x0 + (1 - alphas).sqrt() * noise
    v = alphas.sqrt() * noise - (1 - alphas).sqrt() * x0
    assert_close(restorer.to_noise(noisy, timesteps, v), noise, rtol=1e-4, atol=1e-4)
    assert_close(restorer.to_x0(noisy, timesteps, v), x0, rtol=1e-4, atol=1e-4)
    assert_close(restorer.predict_x0(noisy, timesteps, noise), x0, rtol=1e-3, atol=1e-3)
    plain = make_micro(prediction="epsilon")
    assert_close(plain.to_noise(noisy, timesteps, noise), noise)
    assert_close(plain.to_x0(noisy, timesteps, noise), x0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_a_step_is_diffusers_step(make_micro, eta):
    restorer = make_micro(prediction="epsilon")
    schedule: DDIMScheduler = make_schedule("epsilon", False)
    schedule.set_timesteps(4)
    latents, noise_pred, noise = torch.randn(3, 2, 3, 4, 4).unbind(0)
    for timestep, previous in ((751, 501), (1, -1)):
        ours = restorer.step(latents, timestep, previous, noise_pred, eta, noise)
        theirs = schedule.step(noise_pred, timestep, latents, eta=eta, variance_noise=noise if eta else None)
        assert_close(ours, theirs.prev_sample, rtol=1e-4, atol=1e-5)


def test_a_noisy_step_needs_noise(make_micro):
    latents = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="needs noise"):
        make_micro().step(latents, 751, 501, latents, eta=0.5)


def restore_by_hand(restorer: DiffusionRestorer, lq: Tensor, seed: int) -> Tensor:
    """Deterministic DDIM from the noised condition, written out."""
    cleaned = lq + restorer.stage1(lq) - lq
    posterior = restorer.vae.encode(cleaned * 2 - 1).latent_dist
    condition = posterior.mean * restorer.vae.config.scaling_factor
    alphas = compute_alphas(False)
    noise = torch.randn(condition.shape[1:], generator=torch.Generator().manual_seed(seed))[None]
    x = alphas[251] ** 0.5 * condition + (1 - alphas[251]) ** 0.5 * noise
    prompt = restorer.text.embedding[None]
    for timestep, after in ((251, 1), (1, 0)):  # with 4 steps, half of them
        at = torch.tensor([timestep])
        down, middle = restorer.control(x, at, prompt, condition, return_dict=False)
        v = restorer.unet(
            x, at, prompt, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        signal, share = alphas[timestep] ** 0.5, (1 - alphas[timestep]) ** 0.5
        x0, eps = signal * x - share * v, signal * v + share * x
        x = alphas[after] ** 0.5 * x0 + (1 - alphas[after]) ** 0.5 * eps
    return (restorer.vae.decode(x / restorer.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def test_restoring_is_the_loop_written_out(make_micro):
    restorer = make_micro(color_fix="none", scaling_factor=1.7)
    lq = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert_close(restorer.restore(lq, [5]), restore_by_hand(restorer, lq, 5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_batch_is_its_images_alone_and_a_seed_decides(make_micro, eta):
    restorer = make_micro(eta=eta)
    lq = torch.rand(4, 3, 32, 16)
    together = restorer.restore(lq, [1, 2, 3, 1])
    alone = torch.cat([restorer.restore(lq[i : i + 1], [seed]) for i, seed in enumerate([1, 2, 3, 1])])
    assert_close(together, alone, rtol=0, atol=1e-5)
    assert torch.equal(together, restorer.restore(lq, [1, 2, 3, 1]))
    assert not torch.allclose(together[:1], restorer.restore(lq[:1], [2]), atol=1e-3)
    assert together.shape == lq.shape
    assert together.dtype == torch.float32
    assert 0 <= float(together.min()) <= float(together.max()) <= 1
    assert not together.requires_grad


@pytest.mark.parametrize(
    ("shape", "seeds", "message"),
    [
        ((1, 3, 16, 24), [0], "multiples of 16 px, got 24 × 16"),
        ((1, 1, 16, 16), [0], "expected RGB"),
        ((3, 16, 16), [0], "expected RGB"),
        ((0, 3, 16, 16), [], "expected RGB"),
        ((2, 3, 16, 16), [0], "one seed per image, got 1 for 2"),
    ],
)
def test_what_cannot_be_restored_is_refused(make_micro, shape, seeds, message):
    with pytest.raises(ValueError, match=message):
        make_micro().restore(torch.zeros(shape), seeds)


def test_noise_comes_from_each_images_seed():
    (both,) = draw_ahead(make_generators([7, 8]), (2, 3), 1, "cpu")
    (second,) = draw_ahead(make_generators([8]), (2, 3), 1, "cpu")
    assert torch.equal(both[1:], second)
    assert torch.equal(both[0], torch.randn(2, 3, generator=torch.Generator().manual_seed(7)))


def test_gradients_reach_the_control_through_decoding_and_nothing_else(make_micro):
    restorer = make_micro()
    restorer.set_trainable("control")
    lq = torch.rand(2, 3, 16, 16)
    condition, prompt = restorer.encode_condition(lq), restorer.encode_prompts(["", ""])
    timesteps = torch.tensor([251, 251])
    latents = restorer.start(condition, torch.randn_like(condition), 251)
    output = restorer.predict_output(latents, timesteps, condition, prompt)
    restorer.decode(restorer.to_x0(latents, timesteps, output)).square().mean().backward()
    trained = restorer.trainable_parameters()
    assert trained == list(restorer.control.parameters())
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in trained)
    assert sum(float(parameter.grad.abs().sum()) for parameter in trained) > 0
    assert all(p.grad is None for part in (restorer.unet, restorer.vae, restorer.stage1) for p in part.parameters())


def test_another_control_can_be_asked(make_micro):
    restorer, other = make_micro(), make_micro()
    with torch.no_grad():
        for parameter in other.control.parameters():
            parameter.mul_(2)
    latents, condition = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    inputs = latents, torch.tensor(251), condition, restorer.encode_prompts([""])
    own, frozen = restorer.compute_control(*inputs), restorer.compute_control(*inputs, control=other.control)
    assert_close(list(frozen), list(other.compute_control(*inputs)))
    assert not torch.allclose(own[-1], frozen[-1])
    given = restorer.predict_output(*inputs, residuals=frozen)
    assert_close(given, restorer.predict_output(*inputs, residuals=other.compute_control(*inputs)))
    assert not torch.allclose(given, restorer.predict_output(*inputs))


def test_bfloat16_stays_near_float32(make_micro):
    restorer = make_micro()
    lq = torch.rand(2, 3, 16, 16)
    exact = restorer.restore(lq, [0, 1])
    rough = restorer.to(torch.bfloat16).restore(lq, [0, 1])
    assert rough.dtype == torch.float32
    assert restorer.alphas.dtype == torch.float32
    assert float((rough - exact).abs().mean()) < 0.02
    assert not torch.equal(rough, exact)


def test_small_memory_changes_nothing_but_the_memory(make_micro):
    restorer = make_micro()
    lq = torch.rand(1, 3, 16, 16)
    exact = restorer.restore(lq, [0])
    restorer.enable_small_memory()
    assert_close(restorer.restore(lq, [0]), exact, rtol=0, atol=1e-4)


def test_settings_tell_what_pixels_depend_on(make_micro):
    settings = make_micro(eta=0.5).settings
    assert settings["restorer"] == "tiny"
    assert settings["eta"] == 0.5
    assert settings["prediction"] == "v_prediction"
    assert settings["weights"] == {}
