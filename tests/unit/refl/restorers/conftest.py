"""Weight files as they are published, but small and with random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("spandrel", reason="needs spandrel: `make install`")

import torch

import refl.published.weights
from refl.published.convert import TEXT, UNET, VAE, export_control, make_key_table
from refl.published.shapes import UNetShape, make_control, make_unet
from refl.published.text_encoder import TextEncoder
from refl.restorers.osediff_lora import PUBLISHED_ALPHA, add_adapters, group_layers, list_encoder_layers
from tests.unit.refl.restorers.one_step_files import write_one_step_files

SMALL = UNetShape(
    widths=(64, 64, 128, 128),
    layers_per_block=1,
    heads=(1, 1, 2, 2),
    attended=(True, True, True, False),
    depth=1,
    context_width=32,
)
LEARNED = 0.1
"""Standard deviation given to what starts at 0, so that a forgotten part shows."""


def make_small_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=0.18215,
    )


def publish(model, prefix: str = ""):
    """Its state under published names; a linear layer of the autoencoder's attention as a 1 x 1 convolution."""
    table = make_key_table(model)
    state = {f"{prefix}{table[key]}": value for key, value in model.state_dict().items()}
    return {
        key: value[:, :, None, None] if ".attn_1." in key and key.endswith("weight") and value.ndim == 2 else value
        for key, value in state.items()
    }


def make_stable_diffusion():
    """The state of a checkpoint, with the entries that such a file has besides."""
    unet, vae, text = make_unet(SMALL), make_small_vae(), TextEncoder(77, 49408, 32, 1, 3, 32)
    extra = {"betas": torch.rand(1000), "alphas_cumprod": torch.rand(1000), "model_ema.decay": torch.tensor(0.9999)}
    return publish(unet, UNET) | publish(vae, VAE) | publish(text, TEXT) | extra


def make_diffbir_control():
    control = make_control(SMALL, 8)
    for name, parameter in control.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid")):
            torch.nn.init.normal_(parameter, std=LEARNED)
    return {key: value.detach() for key, value in export_control(control).items()}


def make_swinir(**changes):
    """DiffBIR's stage 1 in its layout: enlarges eight times what was made eight times smaller."""
    from spandrel.architectures.SwinIR import SwinIR

    arguments = {
        "img_size": 64,
        "embed_dim": 32,
        "depths": [2],
        "num_heads": [2],
        "window_size": 8,
        "mlp_ratio": 2.0,
        "upscale": 8,
        "upsampler": "nearest+conv",
        "start_unshuffle": 8,
    }
    state = SwinIR(**{**arguments, **changes}).state_dict()
    return {key.replace("conv_first.", "conv_first.1."): value for key, value in state.items()}


def make_osediff_adapters(rank: int = 2):
    """What OSEDiff's `save_model` writes, after some training."""
    unet, vae = make_unet(SMALL), make_small_vae()
    groups, layers = group_layers(unet), list_encoder_layers(vae)
    add_adapters(unet, groups, rank, PUBLISHED_ALPHA)
    add_adapters(vae, {"default_encoder": layers}, rank, PUBLISHED_ALPHA)
    for part in (unet, vae):
        for name, parameter in part.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=LEARNED / 5)
    return {
        "unet_lora_encoder_modules": groups["default_encoder"],
        "unet_lora_decoder_modules": groups["default_decoder"],
        "unet_lora_others_modules": groups["default_others"],
        "vae_lora_encoder_modules": layers + layers[:3],  # the published list repeats layers
        "rank_unet": rank,
        "rank_vae": rank,
        "state_dict_unet": {k: v for k, v in unet.state_dict().items() if "lora" in k or "conv_in" in k},
        "state_dict_vae": {k: v for k, v in vae.state_dict().items() if "lora" in k},
    }


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with every file of diffbir-v1, diffbir-v2.1 and the one-step ones, by its published name."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    state = make_stable_diffusion()
    torch.save({"state_dict": state, "global_step": 5}, folder / "v2-1_512-ema-pruned.ckpt")
    torch.save(state, folder / "sd2.1-base-zsnr-laionaes5.ckpt")
    torch.save(make_diffbir_control(), folder / "v1_face.pth")
    torch.save(make_diffbir_control(), folder / "DiffBIR_v2.1.pt")
    tuned = {f"control_model.{key}": value for key, value in make_diffbir_control().items()}
    torch.save(tuned, folder / "diffbir_refl.pt")
    stage1 = {f"module.{key}": value for key, value in make_swinir().items()}
    torch.save({"state_dict": stage1}, folder / "face_swinir_v1.ckpt")
    torch.save(make_osediff_adapters(), folder / "osediff_face.pkl")
    write_one_step_files(folder, make_unet(SMALL), make_small_vae(), SMALL.context_width)
    return folder


@pytest.fixture(scope="module")
def weights_dir(published_folder: Path) -> Iterator[Path]:
    """`published_folder`, with a manifest that knows no checksums, since the numbers are others."""
    manifest = {
        name: entry.model_copy(update={"sha256": "", "size_bytes": 0})
        for name, entry in refl.published.manifest.read_manifest().items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refl.published.weights, "read_manifest", lambda *_: manifest)
        patch.setattr(refl.published.weights, "HF_HUB_OFFLINE", True)
        yield published_folder


@pytest.fixture(scope="session")
def small_swinir() -> Callable[..., dict[str, object]]:
    """`make_swinir`."""
    return make_swinir


@pytest.fixture
def faces():
    """`faces(n)`: smooth coloured images, (n, 3, 64, 64) in [0, 1], each another."""

    def make(n: int, side: int = 64):
        coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(n * 1000 + side))
        image = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
        return image.clamp(0, 1)

    return make
