"""Images of an object store as a browser gets them: by the app, or at signed addresses."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from sqlalchemy import select
from starlette.testclient import TestClient

import db.image_store
import ui.label.stored_images
from db.image_store import STORE_FILE
from db.images import image_path
from db.models import Image
from db.session import Database
from tests.making import SECRET_METHODS, MakeClient, add_photos, make_project

BUCKET = "https://bucket.example.org"


class SigningFiles(LocalFileSystem):  # type: ignore[misc]
    """A folder whose files have signed addresses, made as those of S3: path, end, a keyed hash of both."""

    protocol = "signing"

    def sign(self, path: str, expiration: int = 100, **_: Any) -> str:
        """The address of a file for so many seconds."""
        end = str(int(time.time()) + expiration)
        signature = hmac.digest(b"key of the bucket", f"{path}?{end}".encode(), "sha256").hex()
        return f"{BUCKET}/{Path(path).name}?end={end}&signature={signature}"


fsspec.register_implementation("signing", SigningFiles, clobber=True)


@pytest.fixture
def bucket(people: None, database: Database, data: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The store's folder, which has all images of three photos; the data folder has none of them."""
    bucket, more = tmp_path / "bucket", getattr(request, "param", "")
    protocol = "signing" if more else "file"
    options = "[options]\nauto_mkdir = true" if more else ""
    (data / STORE_FILE).write_text(f'store = "{protocol}://{bucket}"\n{more}\n{options}')
    with database.write() as session:
        make_project(session, data, tmp_path, 3)
    for file in (data / "images").rglob("*.png"):
        file.unlink()
    return bucket


def ask(client: TestClient) -> dict[str, Any]:
    answer = client.post("/api/label", json={"want": 8, "page": "p"})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_the_app_fetches_what_its_folder_lacks_and_sends_it(bucket: Path, ben: TestClient, data: Path) -> None:
    answer = ask(ben)
    assert (len(answer["pairs"]), answer["damaged"]) == (8, 0), "what is not here yet is not damaged"
    for pair in answer["pairs"]:
        for side in ("left", "right", "lq", "hq"):
            got = ben.get(pair[side]["url"])
            assert got.status_code == 200
            sha256 = hashlib.sha256(got.content).hexdigest()
            assert image_path(data, sha256, ".png").read_bytes() == got.content
            assert (bucket / sha256[:2] / f"{sha256}.png").read_bytes() == got.content


def test_a_store_that_is_away_is_told_and_one_that_lost_an_image_loses_its_pairs_only(
    bucket: Path, ben: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = ask(ben)["pairs"][0]
    address = pair["left"]["url"]

    def refuse(*_: object) -> bytes:
        raise ConnectionRefusedError("no route")

    monkeypatch.setattr(db.image_store, "LEFT_ALONE_SECONDS", 0.0)
    with monkeypatch.context() as away:
        away.setattr(LocalFileSystem, "cat_file", refuse)
        answer = ben.get(address)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "bucket" not in answer.text
    whole = ben.get(address).content
    assert ask(ben)["damaged"] == 0, "an outage makes nothing damaged"
    with database.read() as session:
        lost = session.scalars(select(Image).where(Image.sha256 != hashlib.sha256(whole).hexdigest())).all()[-1]
    sha256 = lost.sha256
    kept = (bucket / sha256[:2] / f"{sha256}.png").rename(bucket / "kept")
    looks = [one for pair in ask(ben)["pairs"] for one in (pair["left"], pair["right"], pair["lq"], pair["hq"])]
    assert {ben.get(one["url"]).status_code for one in looks} == {200, 410}
    assert ask(ben)["damaged"] > 0
    kept.rename(bucket / sha256[:2] / f"{sha256}.png")
    monkeypatch.setattr(ui.label.stored_images, "LOOK_AGAIN_SECONDS", 0.0)
    assert ask(ben)["damaged"] == 0


@pytest.mark.parametrize("bucket", ['serve = "redirect"\nseconds = 60'], indirect=True)
def test_browsers_are_sent_to_signed_addresses_that_name_no_method(
    bucket: Path, ben: TestClient, client: MakeClient, data: Path, database: Database, tmp_path: Path
) -> None:
    answer = ask(ben)
    policy = ben.get("/").headers["content-security-policy"]
    assert f"img-src 'self' {BUCKET} data: blob:;" in policy
    assert policy.count(BUCKET) == 1
    addresses = [pair[side]["url"] for pair in answer["pairs"] for side in ("left", "right", "lq", "hq")]
    for address in addresses:
        sent = ben.get(address)
        assert (sent.status_code, sent.content) == (307, b"")
        assert sent.headers["cache-control"] == "private, max-age=30"
        to = sent.headers["location"]
        assert to.startswith(f"{BUCKET}/")
        assert not any(word in to for word in (*SECRET_METHODS, "face"))
        assert 55 < int(to.partition("end=")[2].partition("&")[0]) - time.time() <= 61
    assert BUCKET not in json.dumps(answer), "only who may see an image gets such an address, and when it is looked at"
    assert client().get(addresses[0]).status_code == 401
    assert ben.get(f"/img/{'0' * 64}").status_code == 403
    assert not list((data / "images").rglob("*.png")), "the app reads none of them"
    with database.write() as session:
        (image,) = add_photos(session, data, tmp_path, [99])
    (bucket / image.sha256[:2] / f"{image.sha256}.png").unlink()  # as before `python -m db images push`
    sent = client("ada").get(f"/img/{image.sha256}")
    assert (sent.status_code, sent.content) == (200, image_path(data, image.sha256, ".png").read_bytes())
