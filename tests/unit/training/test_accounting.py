"""Hand-worked sizes, kernels and host copies, counted on fake tensors; and real tensors give the same count."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: `make install`")

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.accounting import MemoryCount
from training.without_memory import count_without_memory

WEIGHTS = 1024 * 256 * 4 + 1024 * 4
"""Bytes of a Linear(256, 1024)."""


def test_a_linear_layer_forward_and_backward():
    with count_without_memory() as count:
        layer = nn.Linear(256, 1024)
        count.name("layer", layer)
        assert count.live_bytes == WEIGHTS
        images = torch.randn(64, 256)
        with count.phase("forward") as forward:
            out = layer(images)
        inputs, outputs = 64 * 256 * 4, 64 * 1024 * 4
        assert forward.at_peak == {"layer": WEIGHTS, "activations": inputs + outputs}
        assert forward.peak_bytes == WEIGHTS + inputs + outputs
        with count.phase("backward") as backward:
            out.sum().backward()
        assert count.bytes_by_part["gradients"] == WEIGHTS
        assert backward.peak_bytes >= forward.peak_bytes + WEIGHTS
        del out
        layer.zero_grad()
        assert count.live_bytes == WEIGHTS + inputs


def test_adamw_keeps_two_moments_and_a_step_count_of_each_parameter():
    with count_without_memory() as count:
        layer = nn.Linear(256, 1024)
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        count.name("layer", layer)
        count.name("optimizer", optimizer)
        for _ in range(2):
            layer(torch.randn(64, 256)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert dict(count.bytes_by_part) == {
            "layer": WEIGHTS,
            "optimizer": 2 * WEIGHTS + 2 * 512,
            "gradients": 0,
            "activations": 0,
        }
        assert count.at_peak["optimizer"] == 2 * WEIGHTS + 2 * 512


def test_masters_and_what_is_allocated_for_a_part_get_its_name():
    with count_without_memory() as count:
        layer = nn.Linear(256, 1024)
        masters = [parameter.detach().clone() for parameter in layer.parameters()]
        layer.to(torch.bfloat16)  # fake parameters can be exchanged
        count.name("layer", layer)
        count.name("masters", masters)
        with count.allocate_for("frozen copy"):
            copy = layer.weight.detach().clone()
        assert layer.weight.dtype == torch.bfloat16
        assert dict(count.bytes_by_part) == {
            "layer": WEIGHTS // 2,
            "masters": WEIGHTS,
            "frozen copy": 1024 * 256 * 2,
            "activations": 0,
        }
        del copy
        assert count.bytes_by_part["frozen copy"] == 0


def test_sizes_are_rounded_up_as_the_allocator_does():
    with count_without_memory() as count:
        kept = [torch.zeros(1), torch.zeros(129)]
        assert count.live_bytes == 512 + 1024
        del kept


def test_views_and_in_place_operations_are_not_counted_twice():
    with count_without_memory() as count:
        square = torch.randn(256, 256)
        alive = count.live_bytes
        view = square.t()[:8].unsqueeze(0).expand(4, -1, -1)
        square.add_(1).relu_()
        square.detach().view(-1).zero_()
        assert count.live_bytes == count.peak_bytes == alive == 256 * 256 * 4
        del square
        assert count.live_bytes == alive  # the view still holds it
        del view
        assert count.live_bytes == 0


def test_what_is_freed_makes_room_and_the_peak_stays():
    with count_without_memory() as count:
        for _ in range(5):
            torch.randn(1024).mul(2)
        assert count.live_bytes == 0
        assert count.peak_bytes == 2 * 4096


def test_phases_have_peaks_of_their_own():
    with count_without_memory() as count:
        kept = torch.zeros(1024)
        with count.phase("large"):
            torch.zeros(10240)
        with count.phase("small"):
            torch.zeros(128)
        with count.phase("small"):
            torch.zeros(256)
        assert count.phases["large"].peak_bytes == count.peak_bytes == 4096 + 40960
        assert count.phases["small"].peak_bytes == 4096 + 1024
        assert count.phases["small"].kernels == {"zeros": 2}
        del kept


def run_blocks(use_checkpoints: bool, device: str = "cpu") -> MemoryCount:
    with count_without_memory(device) as count, torch.device(device):
        blocks = [nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU()) for _ in range(6)]
        for block in blocks:
            count.name("blocks", block)
        x = torch.randn(512, 64, requires_grad=True)
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if use_checkpoints else block(x)
        with count.phase("backward"):
            x.sum().backward()
    return count


def test_checkpointing_lowers_the_peak_and_costs_kernels():
    plain, saving = run_blocks(False), run_blocks(True)
    size = 512 * 64 * 4
    # the input and four results of each block, against the borders of the blocks and one block anew
    assert plain.at_peak["activations"] >= (1 + 6 * 4) * size
    assert saving.at_peak["activations"] <= (1 + 6 + 4 + 3) * size
    assert saving.phases["backward"].kernels["addmm"] == 12
    assert plain.phases["backward"].kernels["addmm"] == 0


def test_the_host_and_a_device_beside_it_count_alike():
    host, device = run_blocks(True), run_blocks(True, "meta")
    assert (device.at_peak, device.whole.kernels) == (host.at_peak, host.whole.kernels)
    assert not device.whole.host_copies


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_stores_no_matrix_of_all_pairs_of_tokens(device):
    with count_without_memory(device) as count:
        heads = torch.randn(1, 8, 4096, 64, dtype=torch.bfloat16, requires_grad=True, device=device)
        mask = torch.zeros(4096, 4096, dtype=torch.bfloat16, device=device)
        matrix = 8 * 4096 * 4096 * 2

        def attend(given):
            return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=given)

        with count.phase("attention") as attention:
            for given in (None, mask):
                attend(given).sum().backward()
                checkpoint(attend, given, use_reentrant=False).sum().backward()
        assert attention.peak_bytes - mask.numel() * 2 < matrix / 4
        assert not any("softmax" in name for name in attention.kernels)


def test_kernels_are_counted_and_views_and_reservations_are_not():
    with count_without_memory() as count:
        a, b = torch.empty(2, 3, 4), torch.empty(4, 5)
        with count.phase("work") as work:
            product = a @ b  # a view of a, one product, a view of the result
            product.reshape(6, 5).relu_().transpose(0, 1).contiguous()  # the last one copies
            torch.empty_like(product).detach().unsqueeze(0).squeeze_(0).copy_(product)
    assert work.kernels == {"mm": 1, "relu_": 1, "clone": 1, "copy_": 1}


def test_a_fused_optimizer_is_two_kernels_a_step():
    with count_without_memory() as count:
        layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
        optimizer = torch.optim.AdamW(layers.parameters(), fused=True)
        for _ in range(2):
            layers(torch.zeros(1, 4)).sum().backward()
            with count.phase(f"step {_}") as step:
                optimizer.step()
    assert step.kernels == {"_foreach_add_": 1, "_fused_adamw_": 1}


def test_host_copies_of_a_fake_gpu_are_seen_with_their_lines():
    with count_without_memory("meta") as count, torch.no_grad():
        layer = nn.Linear(4, 4).to("meta")
        count.name("layer", layer)
        with count.phase("step") as step:
            x = layer(torch.zeros(2, 4, device="meta"))
            assert not step.host_copies
            x += torch.tensor(500, device="meta")  # made on the host
            x += torch.randn(2, 4).to("meta")
            x += torch.randn(2, 4).to("meta", non_blocking=True)  # waits for nobody
            x[0].copy_(torch.randn(4))
            assert float(x.sum()) == 1.0
            x.cpu()
        assert count.bytes_by_part["layer"] == 1024
    assert sorted(where.split()[0] for where in step.host_copies.elements()) == [
        *["_local_scalar_dense"],
        *["_to_copy"] * 2,
        *["copy_"],
        *["tensor"],
    ]
    assert all("training/test_accounting.py:" in where for where in step.host_copies)
    assert step.kernels == {"zeros": 1, "addmm": 1, "add_": 3, "sum": 1}


def test_the_hosts_own_work_is_no_kernel_of_the_gpu():
    with count_without_memory("meta") as count:
        torch.randn(3).mul(2)
        assert count.live_bytes == 0
        assert not count.whole.kernels


def test_a_number_read_from_a_fake_tensor_is_one():
    with count_without_memory() as count:
        values = torch.randn(3)
        assert bool(torch.isfinite(values).all()) is True
        assert values.tolist() == [1.0, 1.0, 1.0]
        assert int(torch.arange(3).sum()) == 1
        assert count.whole.host_copies.total() == 5


def test_real_tensors_give_the_same_count():
    def work(count: MemoryCount) -> MemoryCount:
        layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        count.name("layer", layer)
        count.name("optimizer", optimizer)
        layer(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        return count

    with count_without_memory() as fake:
        work(fake)
    with MemoryCount(workspaces=True) as real:
        work(real)
    assert (fake.peak_bytes, fake.at_peak, fake.whole.kernels) == (real.peak_bytes, real.at_peak, real.whole.kernels)


def test_a_convolution_takes_room_for_copies_unless_its_channels_are_last():
    with count_without_memory() as count, torch.no_grad():
        layer = nn.Conv2d(4, 8, 3, padding=1)
        count.name("layer", layer)
        images = torch.randn(2, 4, 32, 32)
        inputs, outputs = 2 * 4 * 32 * 32 * 4, 2 * 8 * 32 * 32 * 4
        with count.phase("as it is") as phase:
            layer(images)
        assert phase.at_peak["activations"] == inputs + outputs
        assert phase.at_peak["convolution workspace"] == inputs + outputs
        images = images.to(memory_format=torch.channels_last)
        with count.phase("channels last") as phase:
            layer(images)
        assert phase.at_peak == {"layer": 1536 + 512, "activations": inputs + outputs}


def test_a_full_size_layer_takes_no_memory():
    with count_without_memory() as count:
        layer = nn.Linear(2**20, 2**20)  # 4 TiB
        count.name("layer", layer)
        layer(torch.randn(1, 2**20))
        assert count.peak_bytes == 2**42 + 3 * 2**22
