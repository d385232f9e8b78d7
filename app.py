"""Serve the labelling page and the admin pages of one data folder: `python app.py [--demo] [--auth]`."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from db.command import add_database_options
from db.errors import UserError
from db.session import check_writable, open_database
from runs.listen import is_loopback, open_listener
from runs.store import reap_lost
from runs.supervise import start_supervisor
from ui.address import read_base_url, read_trusted_proxies
from ui.context import Context, Worker
from ui.gate.access import load_secret
from ui.gate.address_token import AddressToken
from ui.gate.sign_in import check_someone_can_sign_in

BACKLOG = 2048
MIN_TOKEN_CHARACTERS = 16


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
    parser.add_argument(
        "--trusted-proxy",
        default="127.0.0.1,::1",
        metavar="IP[,IP]",
        help="addresses or networks of proxies whose X-Forwarded-For is believed (default: this machine's)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that serve; more than 1 need PostgreSQL"
    )
    parser.add_argument(
        "--metrics-token-file",
        type=Path,
        metavar="FILE",
        help="file with the token that lets a program of another machine read /metrics",
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
    if args.workers < 1 or (args.workers > 1 and not (args.db or "").startswith("postgresql")):
        raise UserError(
            f"--workers {args.workers} does not work here: give 1, or more with PostgreSQL (--db). SQLite lets one "
            "write at a time, and one process uses that up."
        )
    if args.workers > 1 and not hasattr(os, "fork"):
        raise UserError(f"--workers {args.workers} needs an operating system that forks, such as Linux; leave it out.")
    metrics_token = read_metrics_token(args.metrics_token_file)
    proxies = read_trusted_proxies(args.trusted_proxy)
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
        metrics_token=metrics_token,
        trusted_proxies=tuple(proxies),
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
    database.analyze()
    address = find_address(args, context, listener)
    uploads = context.data / "uploads"
    uploads.mkdir(exist_ok=True)
    if args.workers > 1:
        serve_by_many(args.workers, context, listener, address, uploads)
        return
    tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    run_worker(context, [listener], lambda: say_ready(address))


def read_metrics_token(path: Path | None) -> str | None:
    """The token in the file, without white space around it; None for no file.

    Raises:
        UserError: the file cannot be read, or what is in it is too short to be a secret.
    """
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--metrics-token-file {path} cannot be read: {error}.") from error
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise UserError(
            f"--metrics-token-file {path} holds {len(token)} characters; write {MIN_TOKEN_CHARACTERS} or more into it, "
            "such as those of `openssl rand -hex 32`."
        )
    return token


def find_address(args: argparse.Namespace, context: Context, listener: socket.socket) -> str:
    """What people open; without --auth it holds the token."""
    if context.base_url is not None:
        return f"{context.base_url}{context.root_path}"
    host = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{host}:{listener.getsockname()[1]}{context.root_path}"
    return address if args.auth else AddressToken(load_secret(context.data), context.root_path).put_into(address)


def say_ready(address: str) -> None:
    """Tell the terminal."""
    print(f"FaceReward is ready at {address}  (stop it with Ctrl+C)", flush=True)


def serve_by_many(count: int, context: Context, listener: socket.socket, address: str, uploads: Path) -> None:
    """Serve by so many processes on one listening socket until a signal ends it.

    Raises:
        UserError: a worker cannot start.
    """
    import ui.server  # noqa: F401  (loaded once, here, for all of them)
    from ui.serving.processes import keep_processes

    with tempfile.TemporaryDirectory(prefix="facereward-") as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        place = Worker(0, count, Path(folder))
        sockets = [open_socket(place.socket_of(number)) for number in range(count)]
        listener.listen(BACKLOG)  # from now on whoever comes waits for a worker, also while one is started again
        context.database.close()
        gc.collect()
        gc.freeze()  # else each worker's garbage collection copies what they share

        def work(number: int, ready: Callable[[], None]) -> None:
            own = replace(
                context, database=open_database(context.data, context.url), worker=replace(place, number=number)
            )
            run_worker(own, [listener, sockets[number]], ready)

        keep_processes(count, work, lambda: say_ready(address))


def open_socket(path: Path | None) -> socket.socket:
    """A socket by which the other workers reach one.

    Raises:
        UserError: the path is too long for one.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
    except OSError as error:
        raise UserError(f"Cannot make the socket {path} ({error}); set TMPDIR to a folder of a short path.") from error
    made.listen(BACKLOG)
    return made


def run_worker(context: Context, sockets: list[socket.socket], ready: Callable[[], None]) -> None:
    """Serve by this process until a signal ends it; the first worker does the background work too.

    Args:
        ready: called once requests are answered.
    """
    import uvicorn  # late, so that the errors above come at once

    from ui.autolabel.refit import start_refits
    from ui.server import make_app

    app = make_app(context)
    gc.collect()
    gc.freeze()  # Gradio's pages are a million objects that stay; looking through them holds up every answer
    if context.worker.number == 0:
        start_refits(context)
        start_supervisor(context.database, context.data, url=context.url, cpu_slots=context.cpu_slots)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
        forwarded_allow_ips=list(context.trusted_proxies),
    )
    Server(config).run(sockets=sockets)


if __name__ == "__main__":
    sys.exit(main())
