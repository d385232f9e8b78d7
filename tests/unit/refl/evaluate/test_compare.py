"""Restorers side by side: means, paired changes and the table by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from PIL import Image as PilImage
from torch import Tensor

from metrics.lists import Column
from metrics.weights import MissingWeights, is_offline
from refl.evaluate.compare import choose_metrics, measure_quality, name_columns, summarize, tabulate, write_grid
from refl.evaluate.faces import FaceSet
from refl.evaluate.fid import Moments, compare_by_fid
from refl.evaluate.report import format_cell, format_table, write_report
from refl.evaluate.restored import Restored, compute_keys, read_images, restore_set, write_images
from refl.evaluate.values import open_measured
from refl.faces.degrade import DegradationSettings
from refl.restore.restore import RestoreMethod, to_tensor
from refl.restorers.diffusion import DiffusionRestorer
from refl.tune.data import find_faces
from refl.tune.monitor import judge, to_bytes

MILD = DegradationSettings(blur_kernel_px=5, blur_sigma_px=(0.5, 1.0), downsample_factor=(1, 2))


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


def make_set(folder: Path, images: Tensor, degradation: DegradationSettings | None = None) -> FaceSet:
    """Faces 'a.png', 'b.png', … of these pixels, (N, 3, S, S) in [0, 1]; with ground truths by default."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip("abcdef", to_bytes(images), strict=False):
        PilImage.fromarray(image).save(folder / f"{name}.png")
    faces = [replace(face, sha256=face.name) for face in find_faces(folder)]
    return FaceSet("synthetic", faces, images.shape[-1], degradation or MILD)


def write_restored(folder: Path, faces: FaceSet, method: str, images: Tensor) -> Restored:
    """As if a method had made these images."""
    files = [folder / method / f"{name}.png" for name in faces.names]
    write_images(files, to_bytes(images))
    return Restored(faces, method, 0, files, compute_keys(files, faces))


def measure(restored: Restored, metrics: list[str], folder: Path) -> pd.DataFrame:
    """Metrics of one method's images, by image and metric."""
    measured = open_measured(folder / "measured.jsonl")
    measure_quality([restored], metrics, measured, batch_size=2)
    return tabulate([restored], name_columns(metrics, {}, truth=True), measured)


def test_restoring_measuring_and_the_report(micro_restorer: DiffusionRestorer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    faces = make_set(tmp_path / "faces", torch.rand(3, 3, 16, 16))
    method = RestoreMethod("micro", micro_restorer, settings=micro_restorer.settings)
    at_0, at_7 = restore_set(method, faces, [0, 7], tmp_path / "both", batch_size=2)
    (again,) = restore_set(method, faces, [7], tmp_path / "one", batch_size=2)
    assert at_7.keys == again.keys
    assert at_0.keys != at_7.keys
    values = measure(at_7, ["psnr"], tmp_path)
    one = values[(values["metric"] == "psnr") & (values["seed"] == 7)].set_index("image")["value"]
    shown, hq = to_tensor(read_images(at_7.files)), faces.read_squares(range(3))
    expected = -10 * torch.log10((shown - hq).square().mean(dim=(1, 2, 3)))
    assert one.to_numpy() == pytest.approx(expected.numpy(), rel=1e-3)
    own = judge(["saturation", "high_frequency"], shown, hq)
    for name, numbers in own.items():
        assert values[values["metric"] == name]["value"].tolist() == pytest.approx(numbers.tolist(), rel=1e-5)
    perfect = measure(write_restored(tmp_path, faces, "truth", hq), [], tmp_path)
    assert perfect["value"].abs().max() < 1e-6  # saturation and high frequencies are the ground truth's own
    write_grid(tmp_path / "synthetic.png", [at_0, at_7])
    drawn = np.array(PilImage.open(tmp_path / "synthetic.png"))
    assert drawn.shape == (3 * 16, 3 * 16, 3)  # input, restored with the first seed, ground truth
    assert (drawn[16:32] == np.hstack(read_images(at_0.files))).all()
    record = {
        "base": "micro",
        "left_out": {"musiq": "no weights"},
        "notes": ["reward frozen: no captions"],
        "seconds_an_image": {"synthetic micro": 0.5},
        "faces": {"synthetic": ["a", "b", "c"]},
        "code_version": "0",
    }
    write_report(tmp_path, summarize(values, "micro"), record)
    text = (tmp_path / "report.md").read_text()
    assert "## synthetic: 3 faces" in text
    assert "- micro: 0.500 s per image" in text
    assert "- musiq: no weights" in text
    assert "Note: reward frozen: no captions" in text
    assert "![synthetic](synthetic.png)" in text


def test_where_one_download_fails_no_other_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    offline = []

    def prepare(columns: list[Column], _device: str) -> None:
        (column,) = columns
        if column.metric in ("lpips-vgg", "musiq"):
            offline.append(is_offline())
            raise MissingWeights(f"{column.metric} needs w.pth", "there is no network")

    monkeypatch.setattr("refl.evaluate.compare.prepare", prepare)
    found, left_out = choose_metrics(truth=True)
    assert offline == [False, True]
    assert not is_offline()
    assert "psnr" in found
    assert "niqe" in found
    assert set(left_out) == {"lpips-vgg", "musiq"}
    assert "there is no network: lpips-vgg needs w.pth" in left_out["lpips-vgg"]
    assert left_out["musiq"] == "musiq needs w.pth; not tried, since that of lpips-vgg failed"


def test_moments_of_batches_are_those_of_all_rows() -> None:
    rows = (100 + np.random.default_rng(0).normal(size=(23, 5)) * [1, 2, 3, 4, 5]).astype(np.float32)
    moments = Moments()
    for start in range(0, len(rows), 4):
        moments.add(rows[start : start + 4])
    assert np.allclose(moments.mean, rows.astype(float).mean(axis=0), rtol=1e-14)
    assert np.allclose(moments.covariance, np.cov(rows.astype(float), rowvar=False), rtol=1e-10)


class Colours(torch.nn.Module):
    """Stands in for Inception: the mean colour of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def forward(self, images: Tensor) -> Tensor:
        self.most = max(self.most, len(images))
        return images.mean(dim=(2, 3))


def test_fid_is_the_distance_of_two_gaussians_and_needs_many_faces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fid_arch = pytest.importorskip("pyiqa.archs.fid_arch")
    fid = fid_arch.FID.__new__(fid_arch.FID)
    torch.nn.Module.__init__(fid)
    fid.model, fid.test_img_size = Colours(), (8, 8)
    monkeypatch.setattr("refl.evaluate.fid.load_fid", lambda: fid)
    hq = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    faces = make_set(tmp_path / "faces", hq)
    restored = [write_restored(tmp_path, faces, name, images) for name, images in (("base", hq), ("tuned", hq * 0.5))]
    measured = open_measured(tmp_path / "measured.jsonl")
    rows, reason = compare_by_fid(restored, "base", measured, batch_size=2)
    assert rows.empty
    assert reason == "FID needs 1,000 faces or more, and synthetic has 6."

    monkeypatch.setattr("refl.evaluate.fid.MIN_FACES", 2)
    done: list[int] = []
    rows, reason = compare_by_fid(restored, "base", measured, 2, "cpu", done.append)
    assert reason is None
    assert fid.model.most == 2
    assert sum(done) == 12
    before, after = (np.stack(to_bytes(images)).mean(axis=(1, 2)) for images in (hq, hq * 0.5))
    cross = scipy.linalg.sqrtm(np.cov(before, rowvar=False) @ np.cov(after, rowvar=False)).real
    distance = ((before.mean(0) - after.mean(0)) ** 2).sum()
    distance += np.trace(np.cov(before, rowvar=False) + np.cov(after, rowvar=False) - 2 * cross)
    assert rows["mean"].tolist() == pytest.approx([0, -distance], rel=1e-3, abs=1e-3)
    assert rows["change"].tolist() == pytest.approx([np.nan, -distance], rel=1e-3, nan_ok=True)
    table = "\n".join(format_table(rows.assign(low=np.nan, high=np.nan, change_low=np.nan, change_high=np.nan)))
    assert "fid" in table
    fid.model.most = 0
    again, _ = compare_by_fid(restored, "base", open_measured(tmp_path / "measured.jsonl"), 2)
    pd.testing.assert_frame_equal(again, rows)
    assert fid.model.most == 0  # both distances were kept


def test_without_inception_fid_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load() -> None:
        raise MissingWeights("fid needs w.pth", "there is no network")

    monkeypatch.setattr("refl.evaluate.fid.load_fid", load)
    monkeypatch.setattr("refl.evaluate.fid.MIN_FACES", 1)
    hq = torch.rand(2, 3, 8, 8)
    faces = make_set(tmp_path / "faces", hq)
    restored = [write_restored(tmp_path, faces, "base", hq)]
    rows, reason = compare_by_fid(restored, "base", open_measured(tmp_path / "measured.jsonl"), 2)
    assert rows.empty
    assert "there is no network: fid needs w.pth" in str(reason)
