"""`python -m refl restore` on real files and a real database, by a tiny restorer with random weights."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage
from sqlalchemy import func, select

torch = pytest.importorskip("torch", reason="needs torch: `make install`")
pytest.importorskip("diffusers", reason="needs diffusers: `make install`")

from annotate.judging.pairs import make_pairs  # noqa: E402
from db.images import image_path  # noqa: E402
from db.models import Candidate, Method, Pair, Run, RunState, Source, Split  # noqa: E402
from db.project import load_settings  # noqa: E402
from db.session import Database  # noqa: E402
from refl.__main__ import main  # noqa: E402
from refl.restore.rows import add_face  # noqa: E402
from refl.restorers.tiny import make_tiny, save_tiny  # noqa: E402
from runs.hold import hold_folder  # noqa: E402
from runs.store import latest_run, read_progress, run_folder  # noqa: E402
from tests import onnx_files  # noqa: E402
from tests.unit.refl.conftest import MICRO  # noqa: E402
from ui.html import read_result  # noqa: E402

SMALL = MICRO.model_copy(update={"image_size_px": 32, "steps": 2})
Restore = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a restorer that restores 32 x 32 faces in 2 steps, badly."""
    folder = tmp_path_factory.mktemp("restorers") / "micro"
    torch.manual_seed(0)
    save_tiny(make_tiny(SMALL), SMALL, folder)
    return folder


@pytest.fixture(scope="module")
def one_pass(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network that spandrel knows, which keeps the size."""
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("restorers") / "compact.pth"
    torch.save(Compact(num_feat=8, num_conv=1, upscale=1).state_dict(), file)
    return file


@pytest.fixture
def restore(data: Path, micro: Path, capsys: pytest.CaptureFixture[str]) -> Restore:
    """Runs the command; gives (exit code, all that it printed)."""

    def call(*arguments: object, method: object = f"m={'{micro}'}") -> tuple[int, str]:
        methods = ["--method", str(method).format(micro=micro)] if method else []
        code = main(["restore", "--data", str(data), "--device", "cpu", *map(str, arguments), *methods])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


@pytest.fixture
def faces(database: Database, data: Path, make_photo: Callable[..., Path], tmp_path: Path) -> list[int]:
    """Four sources of 24 x 32 pixels, two of them in the test split."""
    with database.write() as session:
        ids = []
        for number in range(4):
            path = make_photo(tmp_path / "lq" / f"face{number}.png", number)
            ids.append(add_face(session, data, path.stem, path.read_bytes()))
            session.get_one(Source, ids[-1]).split = Split.test if number > 1 else Split.train
    return ids


def candidates(database: Database) -> set[tuple[str, str, int]]:
    with database.read() as session:
        rows = session.execute(
            select(Source.key, Method.name, Candidate.seed)
            .join(Candidate, Candidate.source_id == Source.id)
            .join(Method, Method.id == Candidate.method_id)
        )
        return {tuple(row) for row in rows}


def pixels_of(database: Database, data: Path, key: str, method: str, seed: int) -> np.ndarray:
    with database.read() as session:
        image = session.scalars(
            select(Candidate)
            .join(Source, Source.id == Candidate.source_id)
            .join(Method, Method.id == Candidate.method_id)
            .where(Source.key == key, Method.name == method, Candidate.seed == seed)
        ).one().image  # fmt: skip
        return np.asarray(PilImage.open(image_path(data, image.sha256, image.suffix)))


def test_missing_weights_are_all_told_before_anything_is_loaded_or_stored(
    restore: Restore, database: Database, data: Path, make_photo: Callable[..., Path], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("refl.published.weights.HF_HUB_OFFLINE", True)
    photo, weights = make_photo(tmp_path / "face.png", 1), tmp_path / "weights"
    code, said = restore(photo, "--aligned", "--weights", weights, "--method", "diffbir-v1", "--method", "osediff")
    assert code == 2
    assert "4 weight files are missing" in said
    assert f"put it into {weights}" in said
    with database.read() as session:
        assert not session.scalars(select(Source)).all()


def test_sources_by_several_methods_and_seeds_make_pairs(
    restore: Restore, faces: list[int], database: Database, data: Path, one_pass: Path, micro: Path
) -> None:
    code, said = restore("--split", "test", "--seeds", 0, 7, "--method", f"feedforward:{one_pass}")
    assert code == 0, said
    assert "6 faces restored" in said
    wanted = {(f"face{n}", *slot) for n in (2, 3) for slot in (("m", 0), ("m", 7), ("compact", 0))}
    assert candidates(database) == wanted
    code, said = restore("--seeds", 0, 7, "--method", f"feedforward:{one_pass}")
    assert "6 faces restored" in said
    assert "6 were there" in said
    with database.write() as session:
        assert make_pairs(session, load_settings(session)).added == 4 * 3
        assert session.scalar(select(func.count()).select_from(Pair)) == 12
        settings = {method.name: method.settings for method in session.scalars(select(Method))}
        run = latest_run(session, "refl restore")
        assert run is not None
        assert run.state is RunState.finished
        assert run.config["seeds"] == [0, 7]
    assert settings["m"]["steps"] == 2
    assert list(settings["m"]["weights"]) == ["model.safetensors"]
    assert list(settings["compact"]["weights"]) == ["compact.pth"]
    assert not np.array_equal(*(pixels_of(database, data, "face1", "m", seed) for seed in (0, 7)))
    result = read_result(data, run.id)
    assert (result["restored"], result["already"], result["methods"]) == (6, 6, ["compact", "m"])
    assert result["sources"] == faces
    progress = read_progress(data, run.id)
    assert progress is not None
    assert (progress["done"], progress["total"]) == (16, 16)


def test_the_shipped_restorer_restores_where_none_is_named(
    restore: Restore, faces: list[int], database: Database
) -> None:
    code, said = restore("--source=face0", method=None)
    assert code == 0, said
    assert candidates(database) == {("face0", "tiny", 0)}


def test_one_source_by_its_name(restore: Restore, faces: list[int], database: Database) -> None:
    code, _ = restore("--source=face3", "--source=face0")
    assert code == 0
    assert candidates(database) == {("face0", "m", 0), ("face3", "m", 0)}


def test_a_batch_gives_what_singles_give(restore: Restore, faces: list[int], database: Database, data: Path) -> None:
    restore("--seeds", 0, 1, "--batch-size", 8)
    restore("--seeds", 0, 1, "--batch-size", 1, method="singly={micro}")
    for key in ("face0", "face3"):
        together, alone = (pixels_of(database, data, key, name, 1).astype(int) for name in ("m", "singly"))
        assert np.abs(together - alone).max() <= 1


def test_names_say_what_is_not_the_restorers_own_way(
    restore: Restore, faces: list[int], database: Database, data: Path, micro: Path
) -> None:
    own = f"{micro.parent.name}-micro"
    assert restore("--source=face0", "--steps", 2, method=micro)[0] == 0
    code, said = restore(
        *("--source=face0", "--steps", 3, "--color-fix", "adain", "--size", 64, "--work-size", 48),
        *("--dtype", "bfloat16", "--small-memory"),
        method=micro,
    )
    assert code == 0, said
    other = f"{own}-3steps-at48px-adain-64px-bfloat16-small-memory"
    assert candidates(database) == {("face0", own, 0), ("face0", other, 0)}
    assert pixels_of(database, data, "face0", own, 0).shape == (32, 24, 3)
    assert pixels_of(database, data, "face0", other, 0).shape == (64, 48, 3)
    with database.read() as session:
        settings = session.scalars(select(Method.settings).where(Method.name == other)).one()
    assert {"steps": 3, "image_size_px": 48, "color_fix": "adain", "size_px": 64, "dtype": "bfloat16"}.items() <= (
        settings.items()
    )
    assert settings["small_memory"] is True  # it decides pixels


def test_lora_counts_as_much_as_is_asked(
    restore: Restore, faces: list[int], database: Database, data: Path, micro: Path, tmp_path: Path
) -> None:
    from refl.restorers.load import load_restorer

    tuned = load_restorer(str(micro))
    tuned.set_trainable("lora", 2)
    with torch.no_grad():
        for parameter in tuned.trainable_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tuned.save_trained(tmp_path / "run" / "best")
    restore("--source=face0")
    for strength in (0, 1):
        code, said = restore("--source=face0", "--strength", strength, method=tmp_path / "run" / "best")
        assert code == 0, said
    assert candidates(database) == {("face0", name, 0) for name in ("m", "run-best", "run-best-strength0")}
    untuned, none, full = (
        pixels_of(database, data, "face0", name, 0).astype(int) for name in ("m", "run-best-strength0", "run-best")
    )
    assert np.abs(untuned - none).max() <= 1
    assert np.abs(untuned - full).max() > 5
    code, said = restore("--source=face0", "--strength", 1)
    assert (code, "--strength is for restorers tuned by LoRA" in said) == (2, True)


def test_an_onnx_file_restores_faces_of_any_size_with_its_fidelity(
    restore: Restore, faces: list[int], database: Database, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -r requirements-dev.txt")
    file = onnx_files.write(tmp_path / "codeformer.onnx", onnx_files.face_model(64, weight=onnx_files.DOUBLE))
    for more in ([], ["--fidelity", 0.25], ["--fidelity", 0.5]):
        code, said = restore("--source=face0", "--seeds", 0, 7, *more, method=f"onnx:{file}")
        assert code == 0, said
    assert candidates(database) == {("face0", f"codeformer-onnx{more}", 0) for more in ("", "-fidelity0.25")}
    with database.read() as session:
        settings = {method.name: method.settings for method in session.scalars(select(Method))}
    assert [one["fidelity"] for _, one in sorted(settings.items())] == [0.5, 0.25]
    low, half = (
        pixels_of(database, data, "face0", f"codeformer-onnx{more}", 0).astype(float) for more in ("-fidelity0.25", "")
    )
    assert low.shape == half.shape == (32, 24, 3)
    assert (half - low).max() == pytest.approx(0.25 / 2 * 255, abs=1.5)
    for method in ("{micro}", f"onnx:{onnx_files.write(tmp_path / 'plain.onnx', onnx_files.face_model(64))}"):
        code, said = restore("--source=face0", "--fidelity", 0.5, method=method)
        assert (code, "--fidelity is for CodeFormer as ONNX" in said) == (2, True)
    other = onnx_files.write(tmp_path / "other.onnx", onnx_files.face_model(8))
    code, said = restore(tmp_path / "lq", "--aligned", method=f"onnx:{other}")
    assert (code, "is no face restorer" in said, "source" in said) == (2, True, False)


def write_odd_images(folder: Path) -> list[str]:
    """Images of every kind that is restored; returns their names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = PilImage.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    PilImage.new("RGB", (1, 1), "red").save(folder / "one.png")
    PilImage.new("RGB", (3, 90), "blue").save(folder / "thin.webp")
    noise.convert("L").save(folder / "grey.jpg")
    noise.convert("LA").save(folder / "grey_alpha.png")
    noise.convert("RGBA").save(folder / "alpha.png")
    noise.convert("CMYK").save(folder / "cmyk.jpg")
    noise.quantize(16).save(folder / "palette.png")
    noise.convert("1").save(folder / "bits.png")
    PilImage.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16)).save(folder / "sixteen.png")
    exif = PilImage.Exif()
    exif[0x0112] = 8
    noise.save(folder / "turned.jpg", exif=exif)
    PilImage.new("RGB", (4000, 3000), "green").save(folder / "large.jpg")
    return sorted(file.stem for file in folder.iterdir())


def test_every_kind_of_image_is_restored_or_refused(
    restore: Restore, database: Database, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    names = write_odd_images(folder)
    code, said = restore(folder, "--aligned")
    assert code == 0, said
    assert candidates(database) == {(name, "m", 0) for name in names}
    for name, shape in {"one": (1, 1, 3), "thin": (90, 3, 3), "turned": (30, 40, 3), "large": (3000, 4000, 3)}.items():
        assert pixels_of(database, data, name, "m", 0).shape == shape
    with database.read() as session:
        for row in session.scalars(select(Candidate)):
            assert row.source.lq is not None
            assert (row.image.width_px, row.image.height_px) == (row.source.lq.width_px, row.source.lq.height_px)

    (folder / "cut.jpg").write_bytes((folder / "large.jpg").read_bytes()[:5000])
    (folder / "large.jpg").unlink()  # once is enough, it takes seconds
    frames = [PilImage.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:])
    (folder / "empty.png").touch()
    code, said = restore(folder, "--aligned")
    assert code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    for words in ("cut.jpg: corrupt or truncated", "moving.png: animated (2 frames)", "empty.png: empty file"):
        assert words in line
    assert said.count("\n") == 1
    code, said = restore(folder, "--aligned", "--skip-bad", "--seeds", 1)
    assert code == 0, said
    assert said.count("left out: ") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "No photo in the database has a low-quality image"),
        (("--source", "nobody"), "No photo of this name with a low-quality image: 'nobody'"),
        (("missing.png",), "missing.png: cannot be read"),
        (("--seeds", -1), "--seeds: Give 0 or more, got '-1'"),
        (("--seeds", 2**31), "--seeds: Give 2,147,483,647 or less, got '2147483648'"),
        (("--steps", 0), "--steps: Give 1 or more, got '0'"),
        (("--batch-size", 0), "--batch-size: Give 1 or more, got '0'"),
        (("--aligned",), "--aligned is about INPUT"),
        (("x.png", "--split", "test"), "leave them out beside INPUT"),
        (("x.png", "--background", "realesrgan-x2"), "--background is for whole photos"),
        (("--device", "cuda:99"), "There is no device 'cuda:99'"),
        (("--method", "esrgan"), "There is no restorer 'esrgan'"),
        (("--method", "m={micro}/.."), "Two of the restorers are called 'm'"),
        (("--method", "diffbir-v9"), "There is no restorer 'diffbir-v9'"),
    ],
)
def test_what_cannot_be_done_is_one_line(restore: Restore, database: Database, micro: Path, arguments, said) -> None:
    arguments = [str(argument).format(micro=micro) for argument in arguments]
    code, printed = restore(*arguments)
    assert code == 2
    assert said in printed
    assert printed.count("\n") == 1


def test_a_method_is_one_restorer_only(
    restore: Restore, faces: list[int], database: Database, tmp_path: Path, micro: Path
) -> None:
    torch.manual_seed(1)
    save_tiny(make_tiny(SMALL), SMALL, tmp_path / "other")
    assert restore("--source=face0")[0] == 0
    code, said = restore("--source=face0", method=f"m={tmp_path / 'other'}")
    assert code == 2
    assert "There is a method 'm' already, with " in said
    assert restore("--source=face0", method=f"n={tmp_path / 'other'}")[0] == 0


def test_either_database_takes_it(
    restore: Restore, any_database: Database, database_url: str | None, make_photo: Callable[..., Path], tmp_path: Path
) -> None:
    for number in range(3):
        make_photo(tmp_path / "in" / f"face{number}.png", number)
    options = ["--aligned", "--seeds", 0, 1, *(["--db", database_url] if database_url else [])]
    for printed in ("6 faces restored", "6 were there"):
        code, said = restore(tmp_path / "in", *options)
        assert (code, printed in said) == (0, True), said
    assert candidates(any_database) == {(f"face{number}", "m", seed) for number in range(3) for seed in (0, 1)}


@pytest.mark.parametrize("background", [False, True])
def test_a_whole_photo(restore: Restore, database: Database, data: Path, tmp_path: Path, background: bool) -> None:
    pytest.importorskip("dlib", reason="needs dlib-bin: `make install`")
    from skimage.data import astronaut
    from spandrel.architectures.Compact import Compact

    photo = np.asarray(astronaut())
    PilImage.fromarray(photo).save(tmp_path / "space.png")
    options = []
    if background:
        torch.save(Compact(num_feat=8, num_conv=1, upscale=2).state_dict(), tmp_path / "twice.pth")
        options = ["--background", tmp_path / "twice.pth"]
    code, said = restore(tmp_path / "space.png", "--out", tmp_path / "out", *options)
    assert code == 0, said
    assert candidates(database) == {("space#0", "m", 0)}
    assert pixels_of(database, data, "space#0", "m", 0).shape == (512, 512, 3)
    pasted = np.asarray(PilImage.open(tmp_path / "out" / "photos" / "m-seed0" / "space.png"))
    face = np.asarray(PilImage.open(tmp_path / "out" / "m-seed0" / "space#0.png"))
    assert face.shape == (512, 512, 3)
    scale = 2 if background else 1
    assert pasted.shape == (512 * scale, 512 * scale, 3)
    enlarged = list((tmp_path / "out" / "photos").glob("enlarged-by-twice/space-*.png"))
    assert len(enlarged) == bool(background)
    around = np.asarray(PilImage.open(enlarged[0])) if background else photo
    changed = (pasted != around).any(axis=2)
    down, across = np.nonzero(changed)
    assert abs(across.mean() / scale - 224) < 25  # her face
    assert abs(down.mean() / scale - 125) < 40
    assert 0.01 < changed.mean() < 0.2
    with database.read() as session:
        result = read_result(data, session.scalars(select(Run.id)).one())
    assert result["photos"] == [
        {
            "photo": str(tmp_path / "space.png"),
            "faces": 1,
            "files": {"m-seed0": str(tmp_path / "out" / "photos" / "m-seed0" / "space.png")},
        }
    ]


def test_sigterm_ends_it_and_the_same_command_goes_on(
    restore: Restore, faces: list[int], database: Database, data: Path
) -> None:
    def end_after_three() -> None:
        while len(candidates(database)) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end_after_three)
    ending.start()
    with pytest.raises(SystemExit) as ended:
        restore("--seeds", *range(1000), "--batch-size", 1)
    ending.join()
    assert ended.value.code == 128 + signal.SIGTERM
    with database.read() as session:
        run = latest_run(session, "refl restore")
        assert run is not None
        assert run.state is RunState.stopped
    made = candidates(database)
    assert 3 <= len(made) < 1000
    assert not (run_folder(data, run.id) / "result.json").exists()
    seeds = range(len(made) + 1)
    code, said = restore("--seeds", *seeds, "--batch-size", 16, "--source=face0")
    assert code == 0, said
    assert f"{len(made):,} were there" in said
    assert candidates(database) == {("face0", "m", seed) for seed in seeds}


@pytest.mark.slow  # half a minute; the faces of large photos take seconds to find
def test_every_wild_image_is_restored(restore: Restore, shared_faces: Path, database: Database, tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="needs dlib-bin: `make install`")
    for kind, at_least in (("aligned512", 43), ("whole", 14)):
        (tmp_path / kind).mkdir()
        for file in (shared_faces / "wild" / kind).glob("*/*"):  # some names are in several folders
            shutil.copy(file, tmp_path / kind / f"{file.parent.name}-{file.name}")
        count = len(list((tmp_path / kind).iterdir()))
        assert count >= at_least
        options = ["--aligned"] if kind == "aligned512" else ["--out", tmp_path / "out"]
        code, said = restore(tmp_path / kind, *options, method=None)
        assert code == 0, said
        assert "no face found" not in said
        if kind == "aligned512":
            assert f"{count} faces restored" in said
    assert len(list((tmp_path / "out" / "photos" / "tiny-seed0").iterdir())) == count


def test_two_runs_never_share_a_folder_of_files(
    restore: Restore, faces: list[int], database: Database, tmp_path: Path
) -> None:
    with hold_folder(tmp_path / "out"):
        code, said = restore("--source=face0", "--out", tmp_path / "out")
        assert code == 2
        assert f"error: Another run writes into {tmp_path / 'out'} (process " in said
        assert not candidates(database)
        assert restore("--source=face0")[0] == 0  # without files nothing is shared
    assert restore("--source=face0", "--out", tmp_path / "out")[0] == 0
