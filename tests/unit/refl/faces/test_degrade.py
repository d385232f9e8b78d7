import dataclasses
import math

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from refl.faces.degrade import (
    GFPGAN,
    PUBLISHED,
    STRONG,
    Degradation,
    DegradationSettings,
    compute_blur_kernel,
    degrade,
    draw_degradation,
)

NOTHING = Degradation(
    blur_kernel_px=41,
    sigma_x_px=0.1,
    sigma_y_px=0.1,
    rotation_rad=0.0,
    downsample_factor=1.0,
    noise_std=0.0,
    noise_seed=0,
    jpeg_quality=100,
)


def make_photo(width: int = 96, height: int = 64) -> np.ndarray:
    """Smooth colour gradients with one hard edge."""
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    photo = np.stack([across / width, down / height, np.full_like(across, 0.25)], axis=2)
    photo[height // 3 : height // 2, width // 4 : width // 2] = (0.9, 0.2, 0.1)
    return photo.astype(np.float32)


def test_presets_are_the_published_numbers() -> None:
    assert PUBLISHED.model_dump() == {
        "blur_kernel_px": 41,
        "iso_probability": 0.5,
        "blur_sigma_px": (0.1, 12.0),
        "downsample_factor": (1.0, 12.0),
        "noise_std": (0.0, 15.0),
        "jpeg_quality": (30, 100),
    }
    assert (GFPGAN.blur_sigma_px, GFPGAN.downsample_factor) == ((0.1, 10.0), (0.8, 8.0))
    assert (GFPGAN.noise_std, GFPGAN.jpeg_quality) == ((0.0, 20.0), (60, 100))
    assert (STRONG.blur_sigma_px, STRONG.downsample_factor) == ((1.0, 15.0), (4.0, 30.0))
    assert (STRONG.noise_std, STRONG.jpeg_quality) == ((0.0, 20.0), (30, 80))


@pytest.mark.parametrize(
    "wrong",
    [
        {"blur_sigma": (1, 2)},
        {"blur_kernel_px": 40},
        {"blur_sigma_px": (0.0, 2.0)},
        {"blur_sigma_px": (3.0, 2.0)},
        {"downsample_factor": (1.0, math.inf)},
        {"noise_std": (-1.0, 2.0)},
        {"jpeg_quality": (30, 101)},
        {"iso_probability": 1.5},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DegradationSettings(**wrong)


def test_isotropic_kernel_is_the_separable_gaussian() -> None:
    kernel = compute_blur_kernel(41, 3.0, 3.0, 0.0)
    line = cv2.getGaussianKernel(41, 3.0)
    np.testing.assert_allclose(kernel, line @ line.T, atol=1e-12)


def test_three_pixel_kernel_by_hand() -> None:
    # sigma 1 across and 2 down: exp(-1/2) beside the middle, exp(-1/8) above it, their product at the corners.
    beside, above = math.exp(-0.5), math.exp(-0.125)
    total = 1 + 2 * beside + 2 * above + 4 * beside * above
    kernel = compute_blur_kernel(3, 1.0, 2.0, 0.0)
    assert kernel.sum() == pytest.approx(1.0, abs=1e-12)
    assert kernel[1, 1] == pytest.approx(1 / total)
    assert kernel[1, 0] == pytest.approx(beside / total)
    assert kernel[0, 1] == pytest.approx(above / total)
    assert kernel[2, 2] == pytest.approx(beside * above / total)


def test_a_quarter_turn_swaps_the_axes_and_an_eighth_leans() -> None:
    np.testing.assert_allclose(
        compute_blur_kernel(21, 1.5, 4.0, math.pi / 2), compute_blur_kernel(21, 4.0, 1.5, 0.0), atol=1e-12
    )
    leaning = compute_blur_kernel(21, 4.0, 1.0, math.pi / 4)
    # The long axis points along (1, 1), so its covariance is (16 - 1) / 2, less what the border cuts off.
    offsets = np.arange(21) - 10
    covariance = (leaning * np.outer(offsets, offsets)).sum()
    assert covariance == pytest.approx(7.5, rel=0.1)


def test_doing_nothing_returns_nearly_the_input() -> None:
    # Smooth grey: what is left is 8-bit rounding (1/510) and the rounding of the JPEG's coefficients.
    grey = np.repeat(np.linspace(0.1, 0.9, 64, dtype=np.float32)[None, :, None], 48, axis=0).repeat(3, axis=2)
    assert np.abs(degrade(grey, NOTHING) - grey).max() < 2.5 / 255


def test_channels_keep_their_order_through_jpeg() -> None:
    red = np.zeros((32, 32, 3), np.float32)
    red[..., 0] = 1.0
    np.testing.assert_allclose(degrade(red, NOTHING), red, atol=3 / 255)


def test_noise_has_the_asked_deviation() -> None:
    grey = np.full((200, 200, 3), 0.5, np.float32)
    clean = degrade(grey, NOTHING)
    noisy = degrade(grey, dataclasses.replace(NOTHING, noise_std=10.0))
    # JPEG halves the resolution of colour: averaging its noise over 4 pixels leaves the brightness, which we measure.
    brightness = (noisy - clean) @ np.array([0.299, 0.587, 0.114])
    expected = 10.0 * math.sqrt(0.299**2 + 0.587**2 + 0.114**2)
    assert brightness.std() * 255 == pytest.approx(expected, rel=0.03)


def test_blur_spreads_a_point_by_its_sigma() -> None:
    point = np.zeros((61, 61, 3), np.float32)
    point[30, 30] = 1.0
    spread = degrade(point, dataclasses.replace(NOTHING, blur_kernel_px=41, sigma_x_px=1.0, sigma_y_px=1.0))
    assert spread[30, 30, 1] == pytest.approx(1 / (2 * math.pi), abs=2 / 255)
    assert spread[30, 31, 1] == pytest.approx(math.exp(-0.5) / (2 * math.pi), abs=2 / 255)


def test_downsampling_by_the_whole_size_leaves_one_colour() -> None:
    lq = degrade(make_photo(64, 64), dataclasses.replace(NOTHING, downsample_factor=64.0))
    assert np.ptp(lq.reshape(-1, 3), axis=0).max() < 1e-6


def test_same_parameters_same_bytes_and_another_seed_others() -> None:
    photo = make_photo()
    drawn = draw_degradation(PUBLISHED, np.random.default_rng(5))
    assert draw_degradation(PUBLISHED, np.random.default_rng(5)) == drawn
    assert degrade(photo, drawn).tobytes() == degrade(photo, drawn).tobytes()
    noisy = dataclasses.replace(drawn, noise_std=15.0)
    other = dataclasses.replace(noisy, noise_seed=noisy.noise_seed + 1)
    assert degrade(photo, noisy).tobytes() != degrade(photo, other).tobytes()


@pytest.mark.parametrize("settings", [PUBLISHED, GFPGAN, STRONG], ids=["published", "gfpgan", "strong"])
def test_draws_fill_their_ranges_and_obey_them(settings: DegradationSettings) -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_degradation(settings, rng) for _ in range(2000)]
    for name, (low, high) in {
        "sigma_x_px": settings.blur_sigma_px,
        "sigma_y_px": settings.blur_sigma_px,
        "downsample_factor": settings.downsample_factor,
        "noise_std": settings.noise_std,
        "jpeg_quality": settings.jpeg_quality,
        "rotation_rad": (-math.pi, math.pi),
    }.items():
        values = np.array([getattr(one, name) for one in drawn])
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
    isotropic = sum(one.sigma_x_px == one.sigma_y_px for one in drawn)
    assert abs(isotropic - 1000) < 5 * math.sqrt(2000 * 0.25)
    assert len({one.noise_seed for one in drawn}) > 1990


def test_the_blur_is_never_isotropic_where_its_probability_is_zero() -> None:
    settings = DegradationSettings(iso_probability=0.0)
    drawn = draw_degradation(settings, np.random.default_rng(0))
    assert drawn.sigma_x_px != drawn.sigma_y_px
    assert drawn.rotation_rad != 0


@pytest.mark.parametrize(("width", "height"), [(97, 61), (1, 1), (5, 200), (512, 512)])
@pytest.mark.parametrize("factor", [0.8, 1.0, 7.3, 30.0])
def test_every_size_comes_back_in_its_size_and_range(width: int, height: int, factor: float) -> None:
    rng = np.random.default_rng(0)
    photo = rng.random((height, width, 3), dtype=np.float32)
    lq = degrade(photo, dataclasses.replace(NOTHING, downsample_factor=factor, noise_std=20.0, jpeg_quality=30))
    assert lq.shape == photo.shape
    assert lq.dtype == np.float32
    assert lq.min() >= 0
    assert lq.max() <= 1


def test_the_input_is_left_as_it_was() -> None:
    photo = make_photo()
    before = photo.copy()
    degrade(photo, draw_degradation(STRONG, np.random.default_rng(1)))
    np.testing.assert_array_equal(photo, before)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((8, 8, 3), np.uint8), "uint8"),
        (np.zeros((8, 8, 3), np.float64), "float64"),
        (np.zeros((8, 8), np.float32), r"\(8, 8\)"),
        (np.zeros((8, 8, 4), np.float32), r"\(8, 8, 4\)"),
        (np.zeros((0, 8, 3), np.float32), r"\(0, 8, 3\)"),
        (np.full((8, 8, 3), 255.0, np.float32), "255"),
        (np.full((8, 8, 3), -0.1, np.float32), "-0.1"),
        (np.full((8, 8, 3), np.nan, np.float32), "nan"),
    ],
)
def test_other_images_are_refused_with_what_was_seen(image: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        degrade(image, NOTHING)
