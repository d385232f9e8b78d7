"""Build the FastAPI app: the gate, sign-in, images, the labelling routes, and the Gradio pages for admins."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from gradio.components.navbar import Navbar
from gradio.routes import App
from sqlalchemy import select
from starlette.middleware.sessions import SessionMiddleware

import ui.autolabel.page
import ui.mounts
import ui.pages.data
import ui.pages.export
import ui.pages.metrics
import ui.pages.people
import ui.pages.project
import ui.pages.report
import ui.restore.page
from annotate.ingest.archive import sweep_unpacked
from db.images import MEDIA_TYPE_OF_SUFFIX, DamagedImage, sweep_unfinished
from db.models import Image, Role
from db.project import load_settings, store_question
from ui.address import BelowRootPath, cookie_name
from ui.context import Context
from ui.errors import refuse_invalid
from ui.gate.access import Gate, Tokens, load_secret, visitor_of
from ui.gate.address_token import AddressToken
from ui.gate.rate import LimitArrivals
from ui.gate.sign_in import sign_in_routes
from ui.gate.turns import BoundWaits, TakeTurns
from ui.label.routes import label_routes
from ui.label.showings import Showings
from ui.label.stored_images import StoredImages
from ui.navigation import FIRST, GROUPS, LABEL, header_html
from ui.overview.routes import overview_routes
from ui.plain_pages import STATIC
from ui.runs.routes import run_routes
from ui.serving.counts import CountRequests, Counts, NoteRoute
from ui.serving.figures import make_look
from ui.serving.forward import ForwardAdmin
from ui.serving.spread import SpreadConnections
from ui.serving.watch import Watch
from ui.studies.admin import study_admin_routes
from ui.studies.arrival import arrival_routes
from ui.studies.hooks import hook_routes
from ui.studies.routes import study_routes
from ui.train.round import round_routes
from ui.train.routes import train_routes

log = logging.getLogger(__name__)

SESSION_SECONDS = 30 * 24 * 3600
IMAGE_LIFETIME = "private, max-age=31536000, immutable"
DAMAGED = "An image of this pair is damaged on the server. The pair is left out until the image is imported again."
SHA256 = re.compile(r"[0-9a-f]{64}")
BUILD: dict[str, Callable[[Context], None]] = {
    "Overview": ui.mounts.build_overview,
    "Data": ui.pages.data.build,
    "Restore": ui.restore.page.build,
    "People": ui.pages.people.build,
    "Studies": ui.mounts.build_studies,
    "Project": ui.pages.project.build,
    "Metrics": ui.pages.metrics.build,
    "Auto-annotate": ui.autolabel.page.build,
    "Train": ui.mounts.build_train,
    "Runs": ui.mounts.build_runs,
    "Models": ui.mounts.build_models,
    "Report": ui.pages.report.build,
    "Export": ui.pages.export.build,
}
"""Admin page -> what builds it; `ui.navigation` has their order."""
STYLES = ("palette.css", "header.css", "admin.css")


def make_app(context: Context) -> FastAPI:
    """All of the server for one open database; of several workers the first alone has the admin pages."""
    sweep_unfinished(context.data)
    sweep_unpacked(context.data)
    with context.database.write() as session:
        store_question(session, load_settings(session))  # what pages show from now on
    secret = load_secret(context.data)
    showings = Showings(secret, context.root_path)
    images = StoredImages(context.data)
    app = FastAPI(title="FaceReward", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(RequestValidationError, refuse_invalid)
    app.include_router(sign_in_routes(context, Tokens(secret)))
    app.include_router(label_routes(context, showings, images))
    app.include_router(arrival_routes(context))
    app.include_router(study_routes(context, showings))
    app.include_router(hook_routes(context))
    app.include_router(overview_routes(context))
    app.include_router(study_admin_routes(context))
    app.include_router(run_routes(context))
    app.include_router(train_routes(context))
    app.include_router(round_routes(context))
    _add_image_route(app, context, showings, images)
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/favicon.ico")
    def favicon() -> RedirectResponse:
        return RedirectResponse(f"{context.root_path}/static/icon.svg")

    if context.worker.number == 0:
        _mount_admin_pages(app, context)
    counts = Counts()
    app.add_middleware(NoteRoute)
    app.add_middleware(TakeTurns, auth=context.auth, workers=context.worker.count)
    address_token = AddressToken(secret, context.root_path)
    app.add_middleware(Gate, context=context, address_token=address_token, image_origin=images.origin)
    app.add_middleware(
        SessionMiddleware,
        secret_key=secret.hex(),
        session_cookie=cookie_name("facereward", context.base_url, context.root_path),
        max_age=SESSION_SECONDS,
        path=context.root_path or "/",
        same_site="lax",
    )
    app.add_middleware(LimitArrivals, workers=context.worker.count)
    app.add_middleware(BelowRootPath, root_path=context.root_path, base_url=context.base_url)
    app.add_middleware(BoundWaits)
    app.add_middleware(Watch, context=context, counts=counts, look=make_look(context))
    app.add_middleware(CountRequests, counts=counts)
    if context.worker.count > 1:
        app.add_middleware(SpreadConnections)
    first = context.worker.socket_of(0)
    if context.worker.number != 0 and first is not None:
        app.add_middleware(ForwardAdmin, root_path=context.root_path, socket=first)
    return app


def _mount_admin_pages(app: FastAPI, context: Context) -> None:
    @app.get("/admin")
    def admin() -> RedirectResponse:
        return RedirectResponse(f"{context.root_path}/admin/")

    warnings.filterwarnings("ignore", message="SSR mode is not supported")  # nobody asked for it
    # Gradio's own folder for uploads lies inside the data folder, so that no request reaches a file outside it.
    gr.mount_gradio_app(
        app,
        build_pages(context),
        path="/admin",
        root_path=f"{context.root_path}/admin",
        auth_dependency=lambda request: visitor_of(request).name,
        allowed_paths=[str(context.data.resolve() / folder) for folder in ("runs", "restored")],
        show_error=True,
        run_history=False,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        max_file_size="4gb",
        theme=gr.themes.Default(primary_hue="slate", neutral_hue="gray", font="system-ui"),
        css="\n".join((STATIC / "common" / name).read_text(encoding="utf-8") for name in STYLES),
        head=f'<script src="{context.root_path}/static/common/theme.js"></script>',
    )


def build_pages(context: Context) -> gr.Blocks:
    """The admin pages, one route each; the first is /admin/ itself."""
    pages: gr.Blocks
    *names, last = [name for names in GROUPS.values() for name in names if name != LABEL]
    with _without_apps():
        with gr.Blocks(title="FaceReward", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as pages:
            _build_page(context, FIRST)
        for name in names:
            with pages.route(name, f"/{name.lower()}"):
                _build_page(context, name)
    with pages.route(last, f"/{last.lower()}"):
        _build_page(context, last)
    return pages


@contextmanager
def _without_apps() -> Iterator[None]:
    """Let Gradio make no app of its pages meanwhile.

    It makes one of all pages so far after each, in a tenth of a second of the processor, and only the last is kept.
    """
    make = App.__dict__["create_app"]
    App.create_app = staticmethod(lambda *_, **__: None)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        App.create_app = make  # type: ignore[method-assign]


def _build_page(context: Context, name: str) -> None:
    Navbar(visible=False)  # in its place stands our header, which is that of the labelling page too
    gr.HTML(
        header_html(context.root_path, name),
        js_on_load=f"import('{context.root_path}/static/common/header.js').then((header) => header.mount());",
        apply_default_css=False,
    )
    BUILD[name](context)


def _add_image_route(app: FastAPI, context: Context, showings: Showings, images: StoredImages) -> None:
    @app.get("/img/{name}")
    def image(request: Request, name: str) -> Response:
        """An image's stored bytes, unchanged: at the address of a showing, or for admins at its hash.

        No header of the first says which image it is; either is of one image for good, so a browser may keep it.
        """
        visitor = visitor_of(request)
        if visitor.role is Role.admin and SHA256.fullmatch(name):
            sha256, suffix, headers = name, "", {"ETag": f'"{name}"'}
            if request.headers.get("if-none-match") == headers["ETag"]:
                return Response(status_code=304)
        else:
            found = showings.open_image(visitor, name)
            if found is None:
                raise HTTPException(403, "You may not see this image.")
            (sha256, suffix), headers = found, {}
        if not suffix:
            with context.database.read() as session:
                suffix = session.scalar(select(Image.suffix).where(Image.sha256 == sha256)) or ""
        if not suffix:
            raise HTTPException(404, "There is no such image.")
        if address := images.find_address(sha256, suffix):
            # kept for half as long as it holds, so that no browser follows one that is about to end
            kept = {"Cache-Control": f"private, max-age={images.address_seconds // 2}"}
            return RedirectResponse(address, 307, kept)
        try:
            content = images.read(sha256, suffix)
        except DamagedImage as error:
            log.warning("not shown: %s", error)
            raise HTTPException(410, DAMAGED, {"Cache-Control": "no-store"}) from error
        headers["Cache-Control"] = IMAGE_LIFETIME
        return Response(content, media_type=MEDIA_TYPE_OF_SUFFIX[suffix], headers=headers)
