"""DiffBIR's and Stable Diffusion's golden numbers against our restorer, built from the LDM-format files as published.

Every group goes through `refl.published.convert` and the methods of DiffusionRestorer that restoring and training use.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from refl.faces.color_fix import fix_color
from refl.published.convert import load_published, select_control, split_checkpoint
from refl.published.shapes import make_control, make_text_encoder, make_unet, make_vae, read_unet_shape
from refl.published.text_encoder import TextEncoder
from refl.restorers.diffbir import load_stage1
from refl.restorers.diffusion import DiffusionRestorer, DiffusionSettings
from tests.golden.files import Errors, compare, load_golden


def load_restorer(folder: Path, config: dict[str, Any]) -> DiffusionRestorer:
    """The folder's DiffBIR: all sizes are read from its tensors, but the numbers of heads from its config."""
    files, heads = config["files"], config["diffusers"]["attention_head_dim_as_heads"]
    merged = load_golden(folder, *files["unet"], *files["vae"], *files["text"])
    parts = split_checkpoint(merged, folder)
    control_state = select_control(load_golden(folder, *files["control"]), folder)
    shape = replace(read_unet_shape(parts.unet, folder), heads=tuple(heads))
    with torch.device("meta"):
        unet, vae = make_unet(shape), make_vae(parts.vae, folder)
        control = make_control(shape, config["diffusers"]["control_in_channels"])
        text = make_text_encoder(parts.text, folder, config["diffusers"]["text"]["heads"])
    load_published(unet, parts.unet, files["unet"][0])
    load_published(vae, parts.vae, files["vae"][0])
    load_published(text, parts.text, files["text"][0])
    load_published(control, control_state, files["control"][0])
    vae.register_to_config(scaling_factor=config["scale_factor"])
    use = DiffusionSettings(prediction=config["ddim"]["prediction"], steps=config["ddim"]["steps"], eta=0.0)
    return DiffusionRestorer(unet, control, vae, use, text=text).eval().requires_grad_(False)


def check_control(folder: Path, config: dict[str, Any]) -> Errors:
    """Every output of the ControlNet, in order."""
    golden = load_golden(folder, "io_eps.safetensors")
    residuals = load_restorer(folder, config).compute_control(
        golden["x"], golden["timesteps"], golden["hint"], golden["context"]
    )
    names = sorted(key for key in golden if key.startswith("control."))
    return {name: compare(ours, golden[name]) for name, ours in zip(names, residuals, strict=True)}


def check_eps(folder: Path, config: dict[str, Any]) -> Errors:
    """The noise prediction under the ControlNet, and without it."""
    golden = load_golden(folder, "io_eps.safetensors")
    restorer = load_restorer(folder, config)
    alone = restorer.unet(golden["x"], golden["timesteps"], golden["context"]).sample
    eps = restorer.predict_output(golden["x"], golden["timesteps"], golden["hint"], golden["context"])
    return {"eps": compare(eps, golden["eps"]), "eps_without_control": compare(alone, golden["eps_without_control"])}


def check_vae(folder: Path, config: dict[str, Any]) -> Errors:
    """Encoding to the posterior and to the condition's latents; decoding."""
    golden = load_golden(folder, "io_vae.safetensors")
    restorer = load_restorer(folder, config)
    posterior = restorer.vae.encode(golden["image01"] * 2 - 1).latent_dist
    decoded = restorer.decode(golden["latent"] * config["scale_factor"]) * 2 - 1
    return {
        "mean": compare(posterior.mean, golden["mean"]),
        "std": compare(posterior.std, golden["std"]),
        "cond_latent": compare(restorer.encode_condition(golden["image01"]), golden["cond_latent"]),
        "decoded": compare(decoded, golden["decoded"]),
    }


def check_text(folder: Path, config: dict[str, Any]) -> Errors:
    """The embedding of token ids."""
    golden = load_golden(folder, "io_text.safetensors")
    text = load_restorer(folder, config).text
    assert isinstance(text, TextEncoder)
    return {"embedding": compare(text.encode_tokens(golden["tokens"]), golden["embedding"])}


def check_swinir(folder: Path, config: dict[str, Any]) -> Errors:
    """Stage 1's image, not clamped."""
    golden = load_golden(folder, "io_swinir.safetensors")
    stage1 = load_stage1(load_golden(folder, *config["files"]["swinir"]), folder)
    with torch.no_grad():
        return {"output": compare(stage1(golden["input01"]), golden["output"])}


def check_ddim(folder: Path, config: dict[str, Any]) -> Errors:
    """DDIM without noise and with given noise, the decoded end, and the timesteps of every number of steps."""
    golden = load_golden(folder, "io_ddim.safetensors")
    restorer = load_restorer(folder, config)
    plan = restorer.plan_steps()
    times = torch.tensor([timestep for timestep, _ in plan])
    alphas_prev = torch.stack([restorer.alphas[max(previous, 0)] for _, previous in plan])
    errors = {
        "timesteps": compare(times, golden["timesteps"]),
        "alphas": compare(restorer.alphas[times], golden["alphas"]),
        "alphas_prev": compare(alphas_prev, golden["alphas_prev"]),
        "schedules": compare_schedules(folder, restorer),
    }
    for prefix, etas in (("x_after", torch.zeros(len(plan))), ("eta_x_after", golden["etas"])):
        latents = golden["x_T"]
        for number, ((timestep, previous), eta) in enumerate(zip(plan, etas.tolist(), strict=True), start=1):
            at = torch.tensor(timestep)
            output = restorer.predict_output(latents, at, golden["cond_latent"], golden["context"])
            latents = restorer.step(latents, timestep, previous, output, eta, golden[f"noise_{number}"])
            errors[f"{prefix}_{number}"] = compare(latents, golden[f"{prefix}_{number}"])
        if prefix == "x_after":
            errors["decoded"] = compare(restorer.decode(latents) * 2 - 1, golden["decoded"])
    return errors


def compare_schedules(folder: Path, restorer: DiffusionRestorer) -> float:
    """How many numbers of steps give other timesteps than the original, of those for which it gives that many."""
    golden = json.loads((folder / "ddim_schedule.json").read_text(encoding="utf-8"))["timesteps"]
    given = {int(steps): times for steps, times in golden.items() if times and len(times) == int(steps)}
    return float(sum([t for t, _ in restorer.plan_steps(steps)][::-1] != times for steps, times in given.items()))


def check_color(folder: Path, config: dict[str, Any]) -> Errors:
    """The wavelet colour fix."""
    golden = load_golden(folder, "io_color.safetensors")
    return {"output": compare(fix_color(golden["content01"], golden["style01"], "wavelet"), golden["output"])}
