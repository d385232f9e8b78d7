"""One-step restorers: their files' names and shapes, their step, and that what is tuned has the published form."""

from __future__ import annotations

import copy
import math

import pytest

pytest.importorskip("peft", reason="needs peft: `make install`")

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from db.errors import UserError
from refl.published.shapes import STABLE_DIFFUSION, make_unet
from refl.restore.methods import LoadOptions, check_methods, load_method, name_methods
from refl.restorers import hypir, lora
from refl.restorers.adapted import check_adapters
from refl.restorers.export import export_trained
from refl.restorers.hypir import read_hypir_adapters
from refl.restorers.kin import ONE_STEP
from refl.restorers.load import load_restorer
from refl.restorers.osdface import FULL_WIDTHS, read_osdface_adapters
from refl.restorers.osdface_prompt import PromptEncoder, choose_words
from refl.restorers.osediff_lora import add_adapters
from refl.restorers.outline import Outline, outline_restorer
from refl.restorers.pisasr import PisaSettings, build_pisasr, read_pisasr_adapters
from tests.unit.refl.restorers import one_step_files as files
from tests.unit.refl.restorers.conftest import SMALL
from training.weights import map_weights, read_checkpoint

KINDS = tuple(ONE_STEP)
OWN = ("hypir", "osdface", "pisasr")
"""Those whose published adapters are what is trained."""
RANK = 2
FILES = {"hypir": "HYPIR_sd2.pth", "osdface": "pytorch_lora_weights.safetensors", "pisasr": "pisa_sr.pkl"}
FILES["osediff"] = "osediff_face.pkl"
READ = {"hypir": read_hypir_adapters, "osdface": read_osdface_adapters, "pisasr": read_pisasr_adapters}
OUT = {"osdface": "out.safetensors"}
ALIKE = 1e-4
"""Of a pixel in [0, 1], between two orders of the same sums."""


@pytest.fixture(scope="module")
def alone(weights_dir):
    """`alone("hypir")`: the restorer of the small published files, made once."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = load_restorer(kind, weights_dir=weights_dir)
        return made[kind]

    return get


@pytest.fixture(scope="module", params=KINDS)
def published(request, alone):
    """Each of them."""
    return alone(request.param)


@pytest.fixture
def restorer(published):
    """A copy that may be changed."""
    return copy.deepcopy(published)


def train(restorer, lq) -> None:
    """Change what is to be trained, a little and at random."""
    restorer.set_trainable("lora", RANK)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in restorer.trainable_parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    assert len(lq)


@pytest.fixture(scope="module")
def full_unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return make_unet(STABLE_DIFFUSION)


@pytest.fixture(scope="module")
def small_unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return make_unet(SMALL)


def list_shapes(part: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in part.named_parameters() if ".lora_" in name}


def expect_shapes(unet: nn.Module, groups: dict[str, list[str]], rank: int) -> dict[str, tuple[int, ...]]:
    weights, found = files.list_weights(unet), {}
    for adapter, layers in groups.items():
        for layer in layers:
            down, up = files.shape_factors(weights[layer], rank)
            found |= {f"{layer}.lora_A.{adapter}.weight": down, f"{layer}.lora_B.{adapter}.weight": up}
    return found


def test_hypirs_names_and_shapes_at_full_size(full_unet):
    expected = expect_shapes(full_unet, {"default": files.list_hypir_layers(full_unet)}, 256)
    with torch.device("meta"):
        unet = copy.deepcopy(full_unet)
        add_adapters(unet, {hypir.ADAPTER: hypir.list_adapted_layers(unet)}, hypir.RANK, hypir.RANK)
    assert list_shapes(unet) == expected
    assert expected["down_blocks.0.resnets.0.conv1.lora_A.default.weight"] == (256, 320, 3, 3)
    assert expected["mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.lora_B.default.weight"] == (10240, 256)
    assert expected["conv_out.lora_B.default.weight"] == (4, 256, 1, 1)
    assert not [name for name in expected if name.startswith(("conv_in", "time_emb")) or "time_emb_proj" in name]


def test_pisasrs_and_gdpos_names_and_shapes_at_full_size(full_unet):
    groups = files.group_pisa_layers(full_unet)
    expected = {}
    for kind in ("pix", "sem"):
        expected |= expect_shapes(full_unet, {f"default_{place}_{kind}": names for place, names in groups.items()}, 4)
    made = build_pisasr(copy.deepcopy(full_unet), nn.Module(), nn.Module())
    gdpo = ONE_STEP["gdpo"].build(copy.deepcopy(full_unet), nn.Module(), nn.Module())
    gdpo.set_trainable("lora", 4)
    assert list_shapes(made.unet) == expected
    groups = {f"default_{place}": names for place, names in files.group_pisa_layers(full_unet, "others").items()}
    assert list_shapes(gdpo.unet) == expect_shapes(full_unet, groups, 4)


def test_osdfaces_prompt_encoder_at_full_size():
    with torch.device("meta"):
        made = PromptEncoder(FULL_WIDTHS)
    assert made.side_px == 512
    drawn = files.draw_words([64, 128, 128, 128, 256, 512], 1024, 512, blocks=2)
    below = {k.removeprefix("vqvae_LQ."): v.shape for k, v in drawn.items() if k.startswith("vqvae_LQ.")}
    ours = {name: value.shape for name, value in made.state_dict().items() if not name.startswith("change.")}
    assert ours == {name: shape for name, shape in below.items() if not name.startswith("decoder.")}
    assert made.change.conv2.weight.shape == (1024, 256, 1)


def find_alpha(timestep: int) -> float:
    """The product of 1 - beta up to this timestep."""
    roots = [math.sqrt(0.00085) + i / 999 * (math.sqrt(0.012) - math.sqrt(0.00085)) for i in range(timestep + 1)]
    return math.prod(1 - root**2 for root in roots)


def merge_by_hand(unet: nn.Module, state: dict[str, torch.Tensor], scale: float) -> None:
    """Add scale · B A to each weight; of a convolution A's kernel is the layer's and B's is 1 × 1."""
    for name, down in state.items():
        if ".lora_A." in name:
            weight = unet.get_submodule(name.split(".lora_A.")[0]).weight
            up = state[name.replace("lora_A", "lora_B")]
            weight.data += scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


@pytest.fixture
def plain(weights_dir):
    """Stable Diffusion's own denoiser, without adapters."""
    from refl.published.weights import find_file
    from refl.restorers.diffbir import fill_stable_diffusion, make_stable_diffusion

    base = find_file("sd-2.1-base", weights_dir)
    parts = make_stable_diffusion(base)
    fill_stable_diffusion(parts, base, dict.fromkeys(("unet", "vae", "text"), torch.float32))
    return parts


def test_hypirs_step_is_the_formula(alone, plain, weights_dir, faces):
    lq, restorer = faces(1), alone("hypir")
    merge_by_hand(plain.unet, torch.load(weights_dir / "HYPIR_sd2.pth"), 1.0)
    with torch.no_grad():
        z = plain.vae.encode(lq * 2 - 1).latent_dist.mean * 0.18215
        eps, alpha = plain.unet(z, torch.tensor([200]), plain.text([""])).sample, find_alpha(200)
        expected = (z - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
        found = restorer.restore_latents(lq, restorer.encode_prompts([""]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert restorer.use.color_fix == "wavelet"
    with torch.no_grad():
        assert (found - z).abs().max() > 0.01  # the step does something


@pytest.mark.parametrize(("lambda_pix", "lambda_sem"), [(1.0, 1.0), (0.5, 1.5)])
def test_pisasrs_step_is_the_formula_with_its_sliders(alone, plain, weights_dir, faces, lambda_pix, lambda_sem):
    lq, restorer = faces(1), copy.copy(alone("pisasr"))
    restorer.use = PisaSettings(lambda_pix=lambda_pix, lambda_sem=lambda_sem)
    state = torch.load(weights_dir / "pisa_sr.pkl")["state_dict_unet"]
    with torch.no_grad():
        z = plain.vae.encode(lq * 2 - 1).latent_dist.mean * 0.18215
        merge_by_hand(plain.unet, {k: v for k, v in state.items() if "_pix" in k}, 8 / 2)
        of_pixels = plain.unet(z, torch.tensor([1]), plain.text([""])).sample
        merge_by_hand(plain.unet, {k: v for k, v in state.items() if "_sem" in k}, 8 / 2)
        whole = plain.unet(z, torch.tensor([1]), plain.text([""])).sample
        expected = z - (lambda_pix * of_pixels + lambda_sem * (whole - of_pixels))
        found = restorer.restore_latents(lq, restorer.encode_prompts([""]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert restorer.settings["lambda_pix"] == lambda_pix


def test_the_sliders_are_set_from_the_command_and_are_pisasrs_alone(weights_dir):
    options = LoadOptions("cpu", weights_dir, lambda_pix=0.5, lambda_sem=1.0)
    check_methods(name_methods(["pisasr"]), options)
    method = load_method(name_methods(["pisasr"])[0], options)
    assert method.name == "pisasr-pix0.5"
    assert (method.settings["lambda_pix"], method.settings["lambda_sem"]) == (0.5, 1.0)
    with pytest.raises(UserError, match="are PiSA-SR's; hypir has none"):
        check_methods(name_methods(["pisasr", "hypir"]), options)


def choose_slowly(distances: torch.Tensor, vocabulary: torch.Tensor) -> torch.Tensor:
    """The published loop over one image's vectors, the nearest to a word first."""
    nearest, words = distances.min(dim=1)
    seen: list[int] = []
    for place in sorted(range(len(words)), key=lambda at: float(nearest[at])):
        if int(words[place]) not in seen and len(seen) < 77:
            seen.append(int(words[place]))
    rows = [vocabulary[word] for word in seen]
    return torch.stack(rows + [torch.zeros_like(vocabulary[0])] * (77 - len(rows)))


@pytest.mark.parametrize("words", [40, 400])
def test_osdfaces_words_are_the_nearest_each_once(words):
    generator = torch.Generator().manual_seed(words)
    distances, vocabulary = torch.rand(2, 256, words, generator=generator), torch.randn(words, 4, generator=generator)
    found = choose_words(distances, vocabulary)
    assert torch.equal(found, torch.stack([choose_slowly(one, vocabulary) for one in distances]))


def test_osdfaces_step_is_the_formula(alone, plain, weights_dir, faces):
    lq, restorer = faces(1), alone("osdface")
    state = {k.removeprefix("unet."): v for k, v in map_weights(weights_dir / FILES["osdface"]).items()}
    named = {k.replace("lora.down", "lora_A.x").replace("lora.up", "lora_B.x"): v for k, v in state.items()}
    named = {
        k.replace("lora_A.weight", "lora_A.x.weight").replace("lora_B.weight", "lora_B.x.weight"): v
        for k, v in named.items()
    }
    assert any("lora.down" in key for key in state)
    assert any("lora_A.weight" in key for key in state)
    merge_by_hand(plain.unet, named, 1.0)
    with torch.no_grad():
        z = plain.vae.encode(lq * 2 - 1).latent_dist.mean * 0.18215
        encoder = restorer.prompt_encoder
        pixels = nn.functional.interpolate(lq * 2 - 1, (encoder.side_px,) * 2, mode="bilinear")
        h = encoder.quant_conv(encoder.encoder((pixels - 0.5) / 0.5)).flatten(2).transpose(1, 2)
        words = encoder.quantize.embedding.weight
        prompt = choose_slowly(torch.cdist(h[0], words) ** 2, words)
        for name in ("conv1", "conv2"):
            layer = getattr(encoder.change, name)
            prompt = nn.functional.silu(prompt @ layer.weight[:, :, 0].T + layer.bias)
        eps, alpha = plain.unet(z, torch.tensor([399]), prompt[None]).sample, find_alpha(399)
        expected = (z - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
        found = restorer.restore_latents(lq, restorer.encode_prompts([""]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    two = faces(2)
    assert not torch.equal(*restorer.embed(two, restorer.encode_prompts([""])))  # each face has words of its own


def test_gdpos_step_is_the_formula_and_a_seed_counts(alone, faces):
    lq, restorer = faces(2), alone("gdpo")
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        z = restorer.vae.encode(lq[:1] * 2 - 1).latent_dist.mean * 0.18215
        z = math.sqrt(find_alpha(250)) * z + math.sqrt(1 - find_alpha(250)) * noise
        embedding = restorer.text(["clean, high-resolution, 8k"])
        eps, alpha = restorer.unet(z, torch.tensor([100]), embedding).sample, find_alpha(100)
        expected = (z - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
        torch.testing.assert_close(restorer.restore_latents(lq[:1], embedding, noise[None]), expected)
    assert restorer.is_random
    together = restorer.restore(lq, [5, 6])
    assert (together[1:] - restorer.restore(lq[1:], [6])).abs().max() < 2e-4
    assert (restorer.restore(lq[:1], [5]) - restorer.restore(lq[:1], [6])).abs().max() > 0.01
    with pytest.raises(ValueError, match="noised to timestep 250: give noise"):
        restorer.restore_latents(lq[:1], embedding)


def test_a_seed_changes_nothing_where_there_is_no_noise(alone, faces):
    assert torch.equal(alone("hypir").restore(faces(1), [1]), alone("hypir").restore(faces(1), [2]))
    assert not alone("hypir").is_random
    with pytest.raises(ValueError, match="give no noise"):
        alone("hypir").restore_latents(faces(1), torch.zeros(1, 77, 32), torch.zeros(1, 4, 8, 8))


def test_the_outline_is_the_restorers_own(published, weights_dir):
    expected = Outline(published.image_size_px, published.multiple_px, published.is_random)
    assert outline_restorer(str(published.base), weights_dir) == expected


def test_osediffs_settings_gain_nothing(alone):
    keys = {"restorer", "image_size_px", "prompt", "color_fix", "weights"}
    assert set(alone("osediff").settings) == keys  # by them a database knows its method
    assert set(alone("hypir").settings) == {*keys, "timestep"}
    assert set(alone("gdpo").settings) == {*keys, "timestep", "condition_noise_timestep"}


def test_a_step_touches_only_what_is_trained(restorer, faces):
    restorer.set_trainable("lora", RANK)
    before = {name: value.clone() for name, value in restorer.state_dict().items()}
    lq = faces(1)
    noise = torch.randn(1, 4, 8, 8) if restorer.is_random else None
    optimizer = torch.optim.SGD(restorer.trainable_parameters(), lr=1.0)
    (restorer(lq, noise) - 0.5).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in restorer.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, parameter in restorer.named_parameters() if parameter.requires_grad}
    assert moved <= trained
    assert all(".lora_" in name and not name.endswith("_before.weight") for name in trained)
    assert len(moved) >= len(trained) / 2 - 1  # at first a fresh adapter's A stands still


def test_before_training_is_the_published_restorer_and_the_export_the_tuned_one(
    restorer, published, weights_dir, tmp_path, faces
):
    lq, kind = faces(1), str(restorer.base)
    train(restorer, lq)
    plain, tuned = published.restore(lq, [3]), restorer.restore(lq, [3])
    assert (tuned - plain).abs().max() > 0.01
    wanted = [parameter.requires_grad for parameter in restorer.parameters()]
    with torch.no_grad(), restorer.without_adapters():
        assert (restorer.restore(lq, [3]) - plain).abs().max() < ALIKE
    assert [parameter.requires_grad for parameter in restorer.parameters()] == wanted
    assert torch.equal(restorer.restore(lq, [3]), tuned)
    restorer.save_trained(tmp_path / "tuned")
    restorer.set_lora_strength(0)
    assert (restorer.restore(lq, [3]) - plain).abs().max() < ALIKE
    restorer.set_lora_strength(1)
    assert torch.equal(restorer.restore(lq, [3]), tuned)
    file = tmp_path / OUT.get(kind, "out.pkl")
    count, form = export_trained(tmp_path / "tuned", file, weights_dir)
    assert count > 20
    assert "format" in form
    exported = find_changes(kind, read_checkpoint(file))
    before = find_changes(kind, read_checkpoint(weights_dir / FILES[kind])) if kind == "osediff" else {}
    for part in restorer.find_parts():
        for name, layer in restorer.get_submodule(part).named_modules():
            if hasattr(layer, "lora_A"):
                ours = [layer.get_delta_weight(one) for one in layer.lora_A if not one.endswith("_before")]
                expected = sum(ours) + before.get(f"{part}.{name}", 0)
                torch.testing.assert_close(exported[f"{part}.{name}"], expected, atol=1e-6, rtol=1e-4)


def find_changes(kind: str, content: dict) -> dict[str, torch.Tensor]:
    """By a file's own rule, what its adapters add to each layer's weight: alpha / rank · B A, alpha 8 or the rank."""
    tables = {"unet": content.get("state_dict_unet", content), "vae": content.get("state_dict_vae", {})}
    found: dict[str, torch.Tensor] = {}
    for part, state in tables.items():
        for name, down in state.items():
            for first, second in ((".lora_A.", ".lora_B."), (".lora.down.", ".lora.up.")):
                if first in name:
                    layer, up = name.partition(first)[0].removeprefix("unet."), state[name.replace(first, second)]
                    scale = 1.0 if kind in ("hypir", "osdface") else 8 / len(down)
                    change = scale * (up.flatten(1) @ down.flatten(1))
                    shape = (len(up), *down.shape[1:])
                    found[f"{part}.{layer}"] = found.get(f"{part}.{layer}", 0) + change.reshape(shape)
    return found


def test_a_tuned_one_comes_back_and_its_adapters_are_float32_beside_half_precision(alone, weights_dir, tmp_path, faces):
    lq, restorer = faces(1), copy.deepcopy(alone("hypir"))
    train(restorer, lq)
    tuned = restorer.restore(lq, [3])
    restorer.save_trained(tmp_path / "tuned")
    loaded = load_restorer(str(tmp_path / "tuned"), weights_dir=weights_dir)
    assert torch.equal(loaded.restore(lq, [3]), tuned)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    kept = {"dtype": torch.bfloat16, "keep_float32": ("adapters",)}
    half = load_restorer(str(tmp_path / "tuned"), weights_dir=weights_dir, **kept)
    trained = lora.trained_state({"unet": half.unet}, half.trained)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert half.unet.conv_in.weight.dtype == torch.bfloat16
    assert (half.restore(lq, [0]) - tuned).abs().mean() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_file_restores_as_the_tuned_one(alone, kind, weights_dir, tmp_path, faces):
    lq, restorer = faces(1), copy.deepcopy(alone(kind))
    train(restorer, lq)
    tuned = restorer.restore(lq, [3])
    restorer.save_trained(tmp_path / "tuned")
    export_trained(tmp_path / "tuned", tmp_path / (file := OUT.get(kind, "out.pkl")), weights_dir)
    exported = load_restorer(f"{kind}:{tmp_path / file}", weights_dir=weights_dir)
    exported.use = restorer.use  # the colour fix of other adapters of OSEDiff is another
    assert (exported.restore(lq, [3]) - tuned).abs().max() < ALIKE


@pytest.mark.parametrize("kind", OWN)
def test_without_a_step_the_export_is_the_published_file(alone, kind, weights_dir, tmp_path):
    restorer = copy.deepcopy(alone(kind))
    restorer.set_trainable("lora", 99)
    assert restorer.trained.rank != 99  # the published file's
    restorer.save_trained(tmp_path / "tuned")
    out = tmp_path / OUT.get(kind, "out.pth")
    export_trained(tmp_path / "tuned", out, weights_dir)
    before, after = read_checkpoint(weights_dir / FILES[kind]), read_checkpoint(out)
    assert list(before) == list(after)
    if kind == "pisasr":
        assert {k: v for k, v in before.items() if k != "state_dict_unet"} == {
            k: v for k, v in after.items() if k != "state_dict_unet"
        }
        before, after = before["state_dict_unet"], after["state_dict_unet"]
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())
    torch.load(out, weights_only=True) if kind != "osdface" else None


@pytest.mark.slow
def test_an_exported_osediff_is_what_its_load_ckpt_takes(alone, weights_dir, tmp_path, faces):
    restorer = copy.deepcopy(alone("osediff"))
    train(restorer, faces(1))
    restorer.save_trained(tmp_path / "tuned")
    again = load_restorer(str(tmp_path / "tuned"), weights_dir=weights_dir)
    again.base = str(tmp_path / "tuned")
    train(again, faces(1))
    again.save_trained(tmp_path / "twice")
    tuned = again.restore(faces(1), [0])
    export_trained(tmp_path / "twice", tmp_path / "out.pkl", weights_dir)
    content, published = (
        torch.load(tmp_path / "out.pkl", weights_only=True),
        read_checkpoint(weights_dir / "osediff_face.pkl"),
    )
    assert set(content) == set(published)
    assert content["rank_unet"] == content["rank_vae"] == published["rank_unet"] + 2 * RANK
    assert set(content["state_dict_unet"]) == set(published["state_dict_unet"])
    assert set(content["state_dict_vae"]) == set(published["state_dict_vae"])
    for key in ("conv_in.base_layer.weight", "conv_in.base_layer.bias"):
        assert torch.equal(content["state_dict_unet"][key], published["state_dict_unet"][key])
    exported = load_restorer(f"osediff:{tmp_path / 'out.pkl'}", weights_dir=weights_dir)
    exported.use = again.use
    assert (exported.restore(faces(1), [0]) - tuned).abs().max() < ALIKE


def test_a_tuned_diffbir_is_still_refused(alone, weights_dir, tmp_path):
    restorer = copy.deepcopy(alone("hypir"))
    restorer.set_trainable()
    restorer.save_trained(tmp_path / "tuned")
    record = tmp_path / "tuned" / "trained.json"
    record.write_text(record.read_text().replace('"restorer": "hypir"', '"restorer": "diffbir-v1"'))
    with pytest.raises(UserError, match="DiffBIR takes whole ControlNets"):
        export_trained(tmp_path / "tuned", tmp_path / "out.pt", weights_dir)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("hypir", lambda c: c.pop("conv_out.lora_B.default.weight"), "conv_out.lora_B.default.weight is missing"),
        ("hypir", lambda c: c.update({"x.lora_A.default.weight": torch.ones(6, 1)}), "no layer x"),
        ("hypir", lambda c: c.update({"conv_out.lora_A.default.weight": torch.ones(1)}), "ranks are 1, 6"),
        ("hypir", lambda c: c.clear() or c.update(x=torch.ones(1)), "there are none"),
        ("osdface", lambda c: c.update({"unet.alpha": torch.ones(1)}), "alpha is unknown"),
        ("pisasr", lambda c: c.pop("lora_rank_unet_sem"), "it lacks lora_rank_unet_sem"),
        ("pisasr", lambda c: c.update(lora_rank_unet_pix=3), r"is \[2"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(weights_dir, small_unet, kind, change, said):
    content = dict(read_checkpoint(weights_dir / FILES[kind]))
    change(content)
    with pytest.raises(UserError, match=said):
        check_adapters(small_unet, READ[kind](content, "x.pth"))


def test_there_is_no_control_net_to_train(restorer):
    with pytest.raises(ValueError, match="no control"):
        restorer.set_trainable("control")
