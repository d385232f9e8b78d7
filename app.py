"""Serve the labelling page and the admin pages of one data folder: `python app.py [--demo] [--auth]`."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import tempfile

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from db.command import add_database_options
from db.errors import UserError
from db.session import check_writable, open_database
from runs.listen import is_loopback, open_listener
from runs.store import reap_lost
from runs.supervise import start_supervisor
from ui.address import read_base_url
from ui.context import Context
from ui.gate.access import load_secret
from ui.gate.address_token import AddressToken
from ui.gate.sign_in import check_someone_can_sign_in


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The app's options."""
    parser = argparse.ArgumentParser(description="Label pairs of restored faces in the browser.")
    add_database_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; another than 127.0.0.1 needs --auth")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    parser.add_argument("--auth", action="store_true", help="sign-in with password or personal link")
    parser.add_argument("--demo", action="store_true", help="fill an empty database with the demo project")
    parser.add_argument(
        "--filled",
        action="store_true",
        help="with --demo: simulated answers and a small round that learns from them, so that no page is empty",
    )
    parser.add_argument(
        "--root-path", default="", metavar="/PATH", help="path that a proxy serves this app below, such as /label"
    )
    parser.add_argument(
        "--base-url",
        default="",
        metavar="URL",
        help="address that people open, such as https://label.example.org; its host alone is answered, and its path is "
        "the root path",
    )
    parser.add_argument("--cpu-slots", type=int, default=1, metavar="N", help="queued CPU runs at a time (default: 1)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Open the database, build the pages, serve until stopped."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        serve(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def serve(args: argparse.Namespace) -> None:
    """Serve until a signal ends it.

    Raises:
        UserError: the address is taken or needs --auth, the database cannot be opened, it or the data folder cannot be
            written, nobody could sign in.
    """
    if not args.auth and not is_loopback(args.host):
        raise UserError(f"--host {args.host} would let everyone in the network in; add --auth, or leave --host out.")
    if args.cpu_slots < 1:
        raise UserError(f"--cpu-slots is {args.cpu_slots}; give 1 or more.")
    if args.filled and not args.demo:
        raise UserError("--filled fills the demo project; give --demo too.")
    base_url, root_path = read_base_url(args.base_url, args.root_path)
    if base_url is not None and not args.auth:
        raise UserError("--base-url is where others reach this app; without --auth it serves this machine only.")
    listener = open_listener(args.host, args.port)
    database = open_database(args.data, args.db)
    check_writable(database, args.data.resolve())
    context = Context(
        database=database,
        data=args.data.resolve(),
        url=args.db,
        auth=args.auth,
        root_path=root_path,
        base_url=base_url,
        cpu_slots=args.cpu_slots,
    )
    if args.auth:
        check_someone_can_sign_in(context)
    reap_lost(database, context.data)
    if args.demo:
        from ui.demo import make_demo  # its image libraries are not needed otherwise

        make_demo(database, context.data)
    if args.filled:
        from ui.filling import fill_demo, look_at_demo

        if not look_at_demo(database).full:
            fill_demo(context)
        print(look_at_demo(database).sentence, flush=True)
    uploads = context.data / "uploads"
    uploads.mkdir(exist_ok=True)
    tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = str(uploads)

    import uvicorn  # late, so that the errors above come at once

    from ui.autolabel.refit import start_refits
    from ui.server import make_app

    app = make_app(context)
    gc.collect()
    gc.freeze()  # Gradio's pages are a million objects that stay; looking through them holds up every answer
    start_refits(context)
    start_supervisor(database, context.data, url=args.db, cpu_slots=args.cpu_slots)
    host = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{host}:{listener.getsockname()[1]}{root_path}"
    if not args.auth:
        address = AddressToken(load_secret(context.data), root_path).put_into(address)
    if base_url is not None:
        address = f"{base_url}{root_path}"
    print(f"FaceReward is ready at {address}  (stop it with Ctrl+C)", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)).run(
        sockets=[listener]
    )


if __name__ == "__main__":
    sys.exit(main())
