"""Restorers side by side: means, paired changes and the table by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from torch import Tensor

from metrics.lists import Column
from metrics.weights import MissingWeights, is_offline
from refl.evaluate import FaceSet, Restored, choose_metrics, measure_set, restore_set, summarize, write_grid
from refl.evaluate_report import format_cell, format_table, write_report
from refl.fid import compare_by_fid
from refl.monitor import to_bytes
from refl.restorers.diffusion import DiffusionRestorer


def make_values() -> pd.DataFrame:
    """Four images, two seeds; the tuned method is 1 better on three and 1 worse on one; one value failed."""
    rows = []
    for method, offset in (("base", [0, 0, 0, 0]), ("tuned", [1, 1, 1, -1])):
        for image in range(4):
            for seed, jitter in ((0, -0.5), (1, 0.5)):
                value = 10.0 + image + offset[image] + jitter
                if (method, image, seed) == ("tuned", 2, 1):
                    value = np.nan
                rows.append(("synthetic", method, f"face{image}", seed, "psnr", value))
    return pd.DataFrame(rows, columns=["set", "method", "image", "seed", "metric", "value"])


def test_means_are_over_images_and_changes_are_paired() -> None:
    table = summarize(make_values(), "base").set_index("method")
    assert table.loc["base", "mean"] == pytest.approx(11.5)
    # face2 has only the seed that is 0.5 lower: 11, 12, 12.5, 12 and changes 1, 1, 0.5, -1
    assert table.loc["tuned", "mean"] == pytest.approx(11.875)
    assert table.loc["tuned", "change"] == pytest.approx(0.375)
    assert table.loc["tuned", "change_low"] < 0 < table.loc["tuned", "change_high"]
    assert np.isnan(table.loc["base", "change"])
    assert table["n"].tolist() == [4, 4]


def test_a_sure_change_is_bold_and_a_doubtful_one_is_not() -> None:
    row = {"mean": 24.125, "low": 23.5, "high": 24.5, "change": 0.31, "change_low": 0.1, "change_high": 0.5}
    assert format_cell(row) == "24.12 [23.5, 24.5] (**+0.31**)"
    assert format_cell({**row, "change_low": -0.1}) == "24.12 [23.5, 24.5] (+0.31)"
    assert format_cell({**row, "change": np.nan, "low": np.nan}) == "24.12"


def test_a_metric_that_measured_nothing_is_a_dash() -> None:
    values = make_values()
    failed = values[values["method"] == "tuned"].assign(metric="niqe", value=np.nan)
    lines = format_table(
        summarize(pd.concat([values, values[values["method"] == "base"].assign(metric="niqe"), failed]), "base")
    )
    assert lines[0] == "| | base | tuned |"
    assert lines[-1].endswith("| – |")


def test_restoring_measuring_and_the_report(micro_restorer: DiffusionRestorer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    hq = torch.rand(3, 3, 16, 16)
    faces = FaceSet("synthetic", ["a", "b", "c"], hq * 0.5, hq, [None] * 3)
    restored = restore_set(micro_restorer, faces, seeds=[0, 7])
    again = restore_set(micro_restorer, faces, seeds=[7])
    assert torch.equal(restored.images[7], again.images[7])
    assert not torch.equal(restored.images[0], restored.images[7])
    brightness = {"bright": lambda images: images.mean(dim=(1, 2, 3))}
    values = measure_set(faces, "micro", restored, ["psnr"], brightness)
    one = values[(values["metric"] == "psnr") & (values["seed"] == 7)].set_index("image")["value"]
    shown = (restored.images[7] * 255).round() / 255
    expected = -10 * torch.log10((shown - (hq * 255).round() / 255).square().mean(dim=(1, 2, 3)))
    assert one.to_numpy() == pytest.approx(expected.numpy(), rel=1e-3)
    rewards = values[(values["metric"] == "reward bright") & (values["seed"] == 0)]["value"]
    assert rewards.to_numpy() == pytest.approx(restored.images[0].mean(dim=(1, 2, 3)).numpy())
    perfect = measure_set(faces, "truth", Restored({0: hq}, 0.0), [], {})
    assert perfect["value"].abs().max() < 1e-6  # saturation and high frequencies are the ground truth's own
    write_grid(tmp_path / "synthetic.png", faces, {"micro": restored})
    record = {
        "base": "micro",
        "left_out": {"musiq": "no weights"},
        "seconds_an_image": {"synthetic micro": 0.5},
        "faces": {"synthetic": ["a", "b", "c"]},
        "code_version": "0",
    }
    write_report(tmp_path, summarize(values, "micro"), record)
    text = (tmp_path / "report.md").read_text()
    assert "## synthetic: 3 faces" in text
    assert "- micro: 0.500 s an image" in text
    assert "- musiq: no weights" in text
    assert "![synthetic](synthetic.png)" in text


def test_where_one_download_fails_no_other_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    offline = []

    def prepare(columns: list[Column], _device: str) -> None:
        (column,) = columns
        if column.metric in ("lpips-vgg", "musiq"):
            offline.append(is_offline())
            raise MissingWeights(f"{column.metric} needs w.pth", "there is no network")

    monkeypatch.setattr("refl.evaluate.prepare", prepare)
    found, left_out = choose_metrics(truth=True)
    assert offline == [False, True]
    assert not is_offline()
    assert "psnr" in found
    assert "niqe" in found
    assert set(left_out) == {"lpips-vgg", "musiq"}
    assert "there is no network: lpips-vgg needs w.pth" in left_out["lpips-vgg"]
    assert left_out["musiq"] == "musiq needs w.pth; not tried, since that of lpips-vgg failed"


def test_fid_is_the_distance_of_two_gaussians_and_needs_many_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    fid_arch = pytest.importorskip("pyiqa.archs.fid_arch")

    class Colours(torch.nn.Module):
        """Stands in for Inception: the mean colour of each image."""

        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

    fid = fid_arch.FID.__new__(fid_arch.FID)
    torch.nn.Module.__init__(fid)
    fid.model, fid.test_img_size = Colours(), (8, 8)
    monkeypatch.setattr("refl.fid.load_fid", lambda: fid)
    hq = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    faces = FaceSet("synthetic", [f"{n}" for n in range(6)], hq, hq, [None] * 6)
    restored = {"base": Restored({0: hq}, 0.1), "tuned": Restored({0: hq * 0.5}, 0.1)}
    rows, reason = compare_by_fid(faces, restored, "base")
    assert rows.empty
    assert reason == "FID needs 1,000 faces or more, and synthetic has 6."

    monkeypatch.setattr("refl.fid.MIN_FACES", 2)
    rows, reason = compare_by_fid(faces, restored, "base")
    assert reason is None
    before, after = (np.stack(to_bytes(images)).mean(axis=(1, 2)) for images in (hq, hq * 0.5))
    cross = scipy.linalg.sqrtm(np.cov(before, rowvar=False) @ np.cov(after, rowvar=False)).real
    distance = ((before.mean(0) - after.mean(0)) ** 2).sum()
    distance += np.trace(np.cov(before, rowvar=False) + np.cov(after, rowvar=False) - 2 * cross)
    assert rows["mean"].tolist() == pytest.approx([0, -distance], rel=1e-3, abs=1e-3)
    assert rows["change"].tolist() == pytest.approx([np.nan, -distance], rel=1e-3, nan_ok=True)
    table = "\n".join(format_table(rows.assign(low=np.nan, high=np.nan, change_low=np.nan, change_high=np.nan)))
    assert "fid" in table


def test_without_inception_fid_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise MissingWeights("fid needs w.pth", "there is no network")

    monkeypatch.setattr("refl.fid.load_fid", load)
    monkeypatch.setattr("refl.fid.MIN_FACES", 1)
    hq = torch.rand(2, 3, 8, 8)
    rows, reason = compare_by_fid(
        FaceSet("a", ["x", "y"], hq, hq, [None] * 2), {"base": Restored({0: hq}, 0.1)}, "base"
    )
    assert rows.empty
    assert "there is no network: fid needs w.pth" in str(reason)
