"""The paper's model at full size with random weights: one bf16 step on a pair, and its checkpoint. About 12 GiB."""

from __future__ import annotations

import resource
import time

import pytest

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("open_clip", reason="needs open_clip: `make install`")

from reward.model.checkpoint import build_model, load_model, save_model  # noqa: E402
from reward.model.config import load_model_config  # noqa: E402
from reward.train.loss import preference_loss  # noqa: E402
from training.precision import group_parameters  # noqa: E402


@pytest.mark.slow
def test_one_step_of_the_papers_model_in_bfloat16(tmp_path):
    torch.manual_seed(0)
    times = {"start": time.monotonic()}

    def lap(name):
        times[name] = time.monotonic()

    model = build_model(load_model_config("vit-h-14", weights="")).to(torch.bfloat16).train()
    lap("build")
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = model.clip.visual.proj.detach().clone()
    images = torch.rand(2, 3, 512, 512)
    prompt = model.encode_prompts(["a portrait of a man"])
    logits = model.logit_scale * (model.encode_images(images) * prompt).sum(-1)
    loss = preference_loss(logits[:1], logits[1:], torch.ones(1)).sum()
    lap("forward")
    loss.backward()
    lap("backward")
    trained = [p for group in group_parameters(model.parameters(), 0.35) for p in group["params"]]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
    torch.optim.SGD(group_parameters(model.parameters(), 0.35), lr=1.0).step()
    lap("step")
    assert not torch.equal(model.clip.visual.proj, before)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    save_model(model, tmp_path)
    lap("save")
    again = load_model(tmp_path)
    lap("load")
    assert torch.equal(again.clip.visual.proj, model.clip.visual.proj.float())
    laps = list(times.items())
    seconds = {name: round(at - laps[number][1], 1) for number, (name, at) in enumerate(laps[1:])}
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nViT-H-14, a pair, bf16: {seconds} seconds, peak {gib:.1f} GiB")  # noqa: T201
