"""A published folder restores bit for bit as the restorer does, in a process that cannot import this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import load_file
from torch import Tensor

from db.errors import UserError
from refl.__main__ import main
from refl.faces.color_fix import fix_color
from refl.faces.grey import keep_grey
from refl.publish import pipeline
from refl.publish.card import list_base_models
from refl.publish.command import copy_own
from refl.publish.folder import check_publishable, list_adapters, write_folder
from refl.restore.restore import RestoreMethod, restore_faces
from refl.restorers.diffbir import load_stage1
from refl.restorers.load import load_restorer
from refl.restorers.osediff_lora import merge_lora
from tests.unit.refl.conftest import make_micro_one_step, make_micro_osediff, make_micro_restorer
from tests.unit.refl.restorers.conftest import make_swinir

ELSEWHERE = """
import importlib.util, json, sys
import numpy as np
import torch
assert importlib.util.find_spec("refl") is None and importlib.util.find_spec("db") is None, sys.path
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
from PIL import Image
found = {}
for folder in sys.argv[1:]:
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    faces = [Image.fromarray(face) for face in np.load(folder + "/faces.npy")]
    restored = pipe(image=faces, seed=[3, 4], output_type="pt").images
    images = [np.array(one) for one in pipe(image=faces, seed=[3, 4]).images]
    fewer = pipe(image=faces[0], seed=5, num_inference_steps=1, color_fix="adain", output_type="pt").images
    found[folder] = [
        bool(np.array_equal(restored.numpy(), np.load(folder + "/restored.npy"))),
        bool(np.array_equal(np.stack(images), np.load(folder + "/images.npy"))),
        bool(np.array_equal(fewer.numpy(), np.load(folder + "/fewer.npy"))),
        pipe(image=Image.new("RGB", (30, 20))).images[0].size == (30, 20),
        "spandrel" in sys.modules,
    ]
print(json.dumps(found))
"""


class Published(NamedTuple):
    """A folder, and the adapters that were trained before it was written."""

    folder: Path
    adapters: dict[str, Tensor]


def make_faces(size_px: int) -> np.ndarray:
    """Two faces of noise on a smooth ground, (2, H, W, 3); the second is grey."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    faces = np.stack([cv2.resize(one, (size_px, size_px), interpolation=cv2.INTER_CUBIC) for one in small])
    faces[1] = faces[1, :, :, :1]
    return faces


def train_a_little(restorer) -> None:
    """Adapters whose second half is not zero."""
    restorer.set_trainable("lora", 2)
    with torch.no_grad():
        for parameter in restorer.trainable_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    restorer.requires_grad_(False)


def make_restorers() -> dict[str, object]:
    """One of each way: DDIM with noise at each step, a SwinIR before it, one step, both adapted and not."""
    swinir = make_micro_restorer(1)
    torch.manual_seed(2)
    swinir.stage1 = load_stage1(make_swinir(), "made here")
    swinir.use = replace(swinir.use, image_size_px=64, steps=3, eta=0.5, start_fraction=1.0, color_fix="none")
    noisy = make_micro_restorer()
    noisy.use = replace(noisy.use, eta=1.0, steps=5)
    adapted = make_micro_restorer(3)
    train_a_little(adapted)
    one_step = make_micro_osediff()
    train_a_little(one_step)
    one_step.use = replace(one_step.use, timestep=200, condition_noise_timestep=100)
    return {
        "noisy": noisy,
        "swinir": swinir,
        "adapted": adapted,
        "one_step": one_step,
        "pisasr": make_micro_one_step("pisasr"),
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Published]:
    """Folders, and in each what this project restores by the same parts."""
    torch.set_num_threads(1)  # as there: sums are of other parts otherwise
    found = {}
    for name, restorer in make_restorers().items():
        folder = tmp_path_factory.mktemp("published") / name
        adapters = list_adapters(restorer)
        write_folder(restorer, folder)
        faces = make_faces(restorer.image_size_px)
        lq = torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 255
        np.save(folder / "faces.npy", faces)
        np.save(folder / "restored.npy", restorer.restore(lq, [3, 4]).numpy())
        np.save(folder / "images.npy", np.stack(restore_faces(RestoreMethod(name, restorer), list(faces), [3, 4])))
        restorer.use = replace(restorer.use, color_fix="adain")
        np.save(folder / "fewer.npy", restorer.restore(lq[:1], [5], 1).numpy())
        found[name] = Published(folder, adapters)
    return found


def test_it_restores_bit_for_bit_where_this_project_is_not(published, tmp_path):
    folders = [str(one.folder) for one in published.values()]
    told = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, *folders],
        cwd=tmp_path,
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    names = {Path(folder).name: tuple(seen) for folder, seen in found.items()}
    assert names.pop("one_step")[:4] == names.pop("pisasr")[:4] == (True,) * 4, found
    assert names.pop("noisy") == (True, True, True, True, False), "and needs no spandrel"
    assert names == {"swinir": (True,) * 5, "adapted": (True,) * 4 + (names["adapted"][4],)}


def test_adapters_are_merged_and_written_apart_in_diffusers_own_keys(published):
    from diffusers import UNet2DConditionModel

    for name in ("adapted", "one_step"):
        folder, adapters = published[name]
        assert load_file(folder / "pytorch_lora_weights.safetensors").keys() == adapters.keys()
        kinds = {key.partition(".")[0] for key in adapters}
        assert kinds == ({"unet", "controlnet"} if name == "adapted" else {"unet", "vae"})
    restorer = make_micro_restorer(3)
    plain = UNet2DConditionModel.from_config(restorer.unet.config)
    plain.load_state_dict(restorer.unet.state_dict())
    plain.load_lora_adapter(str(published["adapted"].folder / "pytorch_lora_weights.safetensors"), prefix="unet")
    merged = UNet2DConditionModel.from_pretrained(published["adapted"].folder / "unet")
    latents, embedding = torch.randn(1, 4, 4, 4), torch.randn(1, 2, 8)
    got = plain(latents, 500, embedding, return_dict=False)[0]
    want = merged(latents, 500, embedding, return_dict=False)[0]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    bare = restorer.unet(latents, 500, embedding, return_dict=False)[0]
    assert (bare - want).abs().max() > 1e-3, "the adapters do something"


def test_merging_changes_no_more_than_rounding():
    restorer = make_restorers()["adapted"]
    lq = torch.rand(1, 3, 16, 16)
    before = restorer.restore(lq, [0])
    for part in restorer.find_parts().values():
        merge_lora(part)
    assert (restorer.restore(lq, [0]) - before).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["wavelet", "adain", "none"])
def test_the_files_own_colour_fixes_are_the_projects(kind):
    content, style = torch.rand(2, 3, 24, 40), torch.rand(2, 3, 24, 40)
    assert torch.equal(pipeline.fix_color(content, style, kind), fix_color(content, style, kind))


def test_grey_is_kept_as_the_project_keeps_it():
    colours = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    grey = np.repeat(colours[..., :1], 3, axis=2)
    assert np.array_equal(pipeline.keep_grey(colours, grey), keep_grey(colours, grey))
    assert pipeline.keep_grey(colours, colours) is colours


def test_what_cannot_be_meant_is_refused(published, tmp_path):
    from spandrel.architectures.Compact import Compact

    pipe = pipeline.DiffusionPipeline.from_pretrained(str(published["noisy"].folder), trust_remote_code=True)
    with pytest.raises(ValueError, match="one seed per image, got 2 for 1"):
        pipe(image=PilImage.new("RGB", (16, 16)), seed=[1, 2])
    with pytest.raises(ValueError, match="steps must be 1 to 1000"):
        pipe(image=PilImage.new("RGB", (16, 16)), num_inference_steps=1001)
    torch.save(Compact(num_feat=8, num_conv=1, upscale=1).state_dict(), tmp_path / "compact.pth")
    one_pass = load_restorer(f"feedforward:{tmp_path / 'compact.pth'}")
    with pytest.raises(UserError, match="no diffusion model"):
        check_publishable(one_pass, "feedforward:compact.pth")


def test_the_command_publishes_the_shipped_restorer_with_its_card(tmp_path, capsys):
    data, out = str(tmp_path / "data"), tmp_path / "out"
    assert main(["publish", "tiny", "--out", str(out), "--data", data]) == 0
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: ")
    assert "trust_remote_code=True" in card
    assert "64 × 64" in card
    assert json.loads((out / "model_index.json").read_text())["_class_name"] == ["pipeline", "FaceRestorationPipeline"]
    assert (out / "pipeline.py").read_text() == Path(pipeline.__file__).read_text()
    assert (out / "licences.json").is_file()
    assert main(["publish", "tiny", "--out", str(out), "--data", data]) == 2
    assert main(["publish", "tiny", "--out", str(tmp_path / "b"), "--adapters-only", "--data", data]) == 2
    assert "is there already" in (said := capsys.readouterr().err)
    assert "was not tuned by LoRA" in said
    assert not (tmp_path / "b").exists(), "whole or not at all"


def test_a_card_names_the_models_on_the_hub_that_it_began_as():
    assert "lxq007/DiffBIR-v2" in list_base_models("diffbir-v1")
    assert list_base_models("tiny") == []


@pytest.mark.parametrize(("base", "copied"), [("tiny", True), ("/somewhere/else/tuned", False)])
def test_what_was_tuned_from_a_folder_of_this_machine_is_not_offered_to_be_loaded_here(
    tmp_path: Path, base: str, copied: bool
) -> None:
    source = tmp_path / "tuned"
    source.mkdir()
    (source / "trained.json").write_text(json.dumps({"restorer": base, "kind": "lora", "rank": 2}))
    copy_own(source, tmp_path / "facereward")
    assert (tmp_path / "facereward" / "trained.json").is_file() is copied
