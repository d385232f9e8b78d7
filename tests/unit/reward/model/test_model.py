"""The model against open_clip's own, the frozen split, unlocking, prompts."""

from __future__ import annotations

import pytest
import torch

open_clip = pytest.importorskip("open_clip", reason="needs open_clip: `make install`")

from db.errors import UserError  # noqa: E402
from reward.model.checkpoint import allocate_model, read_architecture  # noqa: E402
from reward.model.config import load_model_config  # noqa: E402
from reward.model.model import MAX_LOGIT_SCALE, clamp_logit_scale, preprocess, unlock  # noqa: E402
from training.precision import group_parameters  # noqa: E402

IMAGES = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))
CAPTIONS = ["an old man", "a child who laughs", "an old man"]


def trained_names(model):
    return {name for name, parameter in model.clip.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("training", [False, True])
def test_rewards_are_open_clips_cosines(make_model, training):
    model = make_model().train(training)
    with torch.no_grad():
        pixels = preprocess(IMAGES, model.config)
        image = model.clip.encode_image(pixels, normalize=True)
        text = model.clip.encode_text(model.tokenize(CAPTIONS), normalize=True)
        rewards = model(IMAGES, CAPTIONS)
    assert rewards.shape == (3,)
    torch.testing.assert_close(rewards, (image * text).sum(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.logit_scale, torch.tensor(1 / 0.07))


def test_an_image_without_a_caption_is_compared_with_the_prompt(make_model):
    model = make_model(prompt="a face")
    with torch.no_grad():
        features = model.encode_prompts(["an old man", None, "", "a face"])
    assert not torch.equal(features[0], features[1])
    assert torch.equal(features[1], features[2])
    assert torch.equal(features[1], features[3])


def test_a_fixed_prompt_does_not_look_at_captions(make_model):
    model = make_model(text_mode="fixed")
    with torch.no_grad():
        assert torch.equal(model(IMAGES, CAPTIONS), model(IMAGES, [None] * 3))


def test_a_learned_prompt_starts_as_the_sentence_and_needs_no_text(make_model):
    fixed, learned = make_model(text_mode="fixed"), make_model(text_mode="learned")
    learned.clip.load_state_dict(fixed.clip.state_dict())
    with torch.no_grad():
        learned.prompt_vector.copy_(fixed.encode_prompts([None])[0])
        torch.testing.assert_close(learned(IMAGES, CAPTIONS), fixed(IMAGES, CAPTIONS), atol=1e-6, rtol=0)
    learned.clip.transformer = learned.clip.token_embedding = None  # nothing of the text tower is needed any more
    learned(IMAGES, CAPTIONS).sum().backward()
    assert learned.prompt_vector.grad.abs().sum() > 0


@pytest.mark.parametrize("groups", [0, 1, 2, 3, 4, 5])
def test_the_frozen_part_and_the_rest_are_the_whole(make_model, groups):
    """0: nothing is trained; 5: all is, and the frozen part is preprocessing alone."""
    model = make_model(unlocked_image_groups=groups)
    gradients = []
    for split in (False, True):
        model.zero_grad()
        frozen = model.encode_frozen(IMAGES)
        assert not frozen.requires_grad
        features = model.encode_from_frozen(frozen.clone()) if split else model.encode_images(IMAGES)
        if groups:
            (features**3).sum().backward()
        gradients.append([features.detach()] + [p.grad for p in model.clip.visual.parameters() if p.requires_grad])
    assert frozen.shape == ((3, 3, 32, 32) if groups == 5 else (3, 5, 32))
    assert all(torch.equal(whole, parts) for whole, parts in zip(*gradients, strict=True))


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_the_text_tower_splits_too(make_model, blocks):
    model = make_model(unlocked_text_blocks=blocks)
    tokens = model.tokenize(CAPTIONS)
    frozen = model.encode_tokens_frozen(tokens)
    assert not frozen.requires_grad
    features = model.encode_tokens_from_frozen(frozen, tokens)
    assert features.requires_grad == (blocks > 0)
    torch.testing.assert_close(features, model.clip.encode_text(tokens, normalize=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize("groups", [1, 5])
def test_gradients_reach_the_images_through_frozen_blocks(make_model, groups):
    model = make_model(unlocked_image_groups=groups).requires_grad_(False).double()
    images = IMAGES[:1].double().requires_grad_()
    model(images, CAPTIONS[:1]).sum().backward()
    at, step = (0, 1, 20, 11), 1e-5
    moved = images.detach().clone()
    moved[at] += step
    back = images.detach().clone()
    back[at] -= step
    with torch.no_grad():
        slope = (model(moved, CAPTIONS[:1]) - model(back, CAPTIONS[:1])) / (2 * step)
    torch.testing.assert_close(images.grad[at], slope[0], rtol=1e-5, atol=1e-9)


def test_gradient_checkpointing_changes_no_gradient(make_model):
    model = make_model().train()
    gradients = []
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        model.zero_grad()
        (model.logit_scale * model(IMAGES, CAPTIONS)).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_bfloat16_rewards_are_float32(make_model):
    model = make_model()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rewards = model(IMAGES, CAPTIONS)
    assert rewards.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(rewards, model(IMAGES, CAPTIONS), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("preset", "trained", "total"),
    [
        ("vit-h-14", 514_793_729, 986_109_441),
        ("vit-l-14", 220_254_209, 427_616_513),
        ("vit-b-32", 69_187_329, 151_277_313),
        ("tiny", 885_569, 4_156_801),
    ],
)
def test_trained_parameters_of_each_preset(preset, trained, total):
    config = load_model_config(preset)
    model = allocate_model(config, read_architecture(config))
    counts = unlock(model)
    assert (counts.trained, counts.total) == (trained, total)
    assert counts.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_paper_unlocks_as_its_fork_of_open_clip():
    """Blocks 13-31 of the image tower and 13-23 of the text tower; open_clip 3.3 itself calls the latter 12 groups."""
    config = load_model_config("vit-h-14")
    model = allocate_model(config, read_architecture(config))
    starts = [
        f"{tower}transformer.resblocks.{n}." for tower, last in (("visual.", 31), ("", 23)) for n in range(13, last + 1)
    ]
    starts += ["visual.ln_post.", "visual.proj", "ln_final.", "text_projection", "logit_scale"]
    names = [name for name, _ in model.clip.named_parameters()]
    assert trained_names(model) == {name for name in names if name.startswith(tuple(starts))}
    counts = unlock(model)
    assert (round(counts.image / 1e6, 1), round((counts.text + counts.other) / 1e6, 1)) == (375.2, 139.6)
    decayed, undecayed = group_parameters(model.parameters(), 0.35)
    assert (len(decayed["params"]), len(undecayed["params"])) == (122, 245)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.35, 0)


@pytest.mark.parametrize("groups", [0, 1, 2, 3, 4, 5])
def test_image_groups_mean_what_open_clips_do(make_model, groups):
    model = make_model(unlocked_image_groups=groups, unlocked_text_blocks=0)
    ours = trained_names(model)
    model.clip.lock_image_tower(unlocked_groups=groups)
    assert ours == trained_names(model)


def test_a_learned_prompt_lets_the_text_tower_rest(make_model):
    model = make_model(text_mode="learned", unlocked_text_blocks=2)
    assert all(name.startswith("visual.") or name == "logit_scale" for name in trained_names(model))
    assert model.prompt_vector.requires_grad
    assert unlock(model).other == 1 + 16


@pytest.mark.parametrize(("field", "asked", "most"), [("unlocked_image_groups", 6, 5), ("unlocked_text_blocks", 3, 2)])
def test_more_blocks_than_there_are_is_an_error(make_model, field, asked, most):
    with pytest.raises(UserError, match=f"{field} is {asked}, but .* has {most}"):
        make_model(**{field: asked})


def test_the_logit_scale_is_kept_below_a_hundred(make_model):
    model = make_model()
    for start, end in ((5.0, MAX_LOGIT_SCALE), (-1.0, 1.0), (1.0, 2.718282)):
        model.clip.logit_scale.data.fill_(start)
        clamp_logit_scale(model)
        torch.testing.assert_close(model.logit_scale.item(), end)
