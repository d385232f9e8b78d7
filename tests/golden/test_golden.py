"""Our numbers are those of the original implementations: all groups pass, and a wrong number fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("open_clip", reason="needs open_clip: `make install`")
from safetensors.torch import load_file, save_file

from tests.golden.check import CHECKS, Result, main, run_checks

ROOT = Path(__file__).resolve().parents[2]
SHARED_GOLDEN = ROOT.parent / "shared" / "golden"


@pytest.fixture(scope="module")
def shared_golden() -> Path:
    """The folder of golden numbers; the test is skipped where it is absent."""
    if not SHARED_GOLDEN.is_dir():
        pytest.skip("needs ../shared/golden, which is not beside this checkout")
    return SHARED_GOLDEN


@pytest.fixture
def golden_copy(shared_golden: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    folder = tmp_path / "golden"
    shutil.copytree(shared_golden, folder)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


@pytest.fixture
def golden_main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`golden_main(folder, *groups)`: the command in this process, which has torch already; its exit code."""

    def run(folder: Path, *groups: str) -> int:
        monkeypatch.setattr(sys, "argv", ["golden.py", str(folder), *groups])
        return main()

    return run


@pytest.fixture(scope="module")
def results(shared_golden: Path) -> dict[str, Result]:
    """What is compared where no group is named, by group."""
    return {result.group: result for result in run_checks(shared_golden, [])}


@pytest.mark.parametrize("group", CHECKS)
def test_every_group_is_within_its_tolerance(results, group):
    assert list(results) == list(CHECKS)
    assert results[group].ok, results[group].errors


def test_the_command_prints_a_row_a_group(shared_golden, tmp_path):
    groups = [next(iter(CHECKS)), "tokenizer", "hps"]
    command = [sys.executable, ROOT / "benchmarks" / "golden.py", shared_golden, *groups]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert [row.split()[0] for row in rows[1:]] == groups
    assert all(" ok " in row for row in rows[1:])


def test_a_number_that_is_off_fails_and_is_named(golden_copy, golden_main, capsys):
    path = golden_copy / "io_reward.safetensors"
    numbers = load_file(path)
    numbers["text_features"][0, 0] += 0.001
    save_file(numbers, path)
    assert golden_main(golden_copy, "reward", "hps") == 1
    (row,) = (row for row in capsys.readouterr().out.splitlines() if "FAIL" in row)
    assert row.split()[0] == "reward"
    assert "text_features" in row


def test_no_number_is_not_within_any_tolerance(golden_copy):
    path = golden_copy / "io_losses.safetensors"
    numbers = load_file(path)
    numbers["hps0_loss"] = numbers["hps0_loss"] * float("nan")
    save_file(numbers, path)
    assert [result.group for result in run_checks(golden_copy, ["hps", "tokenizer"]) if not result.ok] == ["hps"]


def test_a_wrong_token_fails(golden_copy):
    path = golden_copy / "tokenizer.json"
    golden = json.loads(path.read_text())
    golden["ids"][2][1] += 1
    path.write_text(json.dumps(golden))
    assert [result.group for result in run_checks(golden_copy, ["hps", "tokenizer"]) if not result.ok] == ["tokenizer"]


@pytest.mark.parametrize(
    ("file", "name", "group"),
    [
        ("io_eps.safetensors", "control.07", "control"),
        ("io_eps.safetensors", "eps", "eps"),
        ("io_vae.safetensors", "std", "vae"),
        ("io_text.safetensors", "embedding", "text"),
        ("io_swinir.safetensors", "output", "swinir"),
        ("io_ddim.safetensors", "eta_x_after_3", "ddim"),
        ("io_ddim.safetensors", "timesteps", "ddim"),
        ("io_color.safetensors", "output", "color"),
        ("io_losses.safetensors", "dtcwt1_low_pred", "dtcwt"),
        ("io_refl.safetensors", "pred_x0", "refl"),
        ("io_refl.safetensors", "grad.zero_convs.1.0.bias", "refl"),
    ],
)
def test_a_restorers_number_that_is_off_is_named(golden_copy, file, name, group):
    numbers = load_file(golden_copy / file)
    numbers[name].view(-1)[0] += 1
    save_file(numbers, golden_copy / file)
    (result,) = run_checks(golden_copy, [group])
    assert not result.ok
    assert max(result.errors, key=lambda error: result.errors[error]) == name


@pytest.mark.parametrize(
    ("change", "group"), [({"attention_head_dim_as_heads": [1, 1, 1, 1]}, "eps"), ({"text": {"heads": 8}}, "text")]
)
def test_numbers_of_heads_are_read_from_the_config(golden_copy, change, group):
    config = json.loads((golden_copy / "config.json").read_text())
    config["diffusers"] |= change
    (golden_copy / "config.json").write_text(json.dumps(config))
    (result,) = run_checks(golden_copy, [group])
    assert not result.ok


def test_condition_and_noisy_latents_the_other_way_round_fail(golden_copy):
    path = golden_copy / "diffbir_control.safetensors"
    weights = load_file(path)
    first = weights["input_blocks.0.0.weight"]
    weights["input_blocks.0.0.weight"] = first.roll(first.shape[1] // 2, dims=1).contiguous()
    save_file(weights, path)
    (result,) = run_checks(golden_copy, ["eps"])
    assert result.errors["eps"] > 0.1
    assert result.errors["eps_without_control"] <= result.tolerance


@pytest.mark.parametrize(
    ("file", "group"),
    [("config.json", "hps"), ("io_reward.safetensors", "reward"), ("ldm_first_stage.safetensors", "eps")],
)
def test_a_missing_file_is_one_line(golden_copy, golden_main, capsys, file, group):
    (golden_copy / file).unlink()
    assert golden_main(golden_copy, group) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file} is missing" in line


def test_the_published_reward_model_has_our_keys_and_shapes(shared_golden):
    import torch

    from reward.model.checkpoint import allocate_model, read_architecture
    from reward.model.config import load_model_config

    published = json.loads((shared_golden / "published_shapes.json").read_text())["FaceRewardModel.pth"]
    config = load_model_config("vit-h-14")
    model = allocate_model(config, read_architecture(config))
    assert {name: list(value.shape) for name, value in model.clip.state_dict().items()} == published
    assert next(model.clip.visual.parameters()).device == torch.device("meta")
