"""Serve a reward model over HTTP until Ctrl+C: `python -m reward serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from db.errors import UserError
from reward.model.weights_folder import WeightsFolder, choose_weights_folder
from runs.listen import is_loopback, open_listener
from runs.options import Command, Flag, Input, Options, Place
from runs.signals import INSISTING, give_back, listen

TOKEN_VARIABLE = "FACEREWARD_REWARD_TOKEN"
LEAST_TOKEN_CHARACTERS = 16


class ServeOptions(Options):
    """Which reward model is served, where, to whom, and how much a request may hold."""

    reward: Annotated[str, Input("reward", "Reward model"), Flag(metavar="[NAME=]MODEL")] = Field(
        min_length=1,
        description="A reward set's folder, a checkpoint folder, a training's folder, a weight file, a name of "
        "reward/model/weights.toml, or a preset",
    )
    host: str = Field("127.0.0.1", description="Address to listen on; another than this machine's own needs a token")
    port: int = Field(8790, ge=0, le=65_535, description="Port to listen on; 0 for a free one")
    token_file: Annotated[Path | None, Flag(metavar="FILE")] = Field(
        None,
        description=f"File of the token that who asks must send (default: what {TOKEN_VARIABLE} holds, if it does)",
    )
    batch_size: int = Field(32, ge=1, description="Images that the model sees at a time")
    max_images: int = Field(64, ge=1, description="Images in a request")
    max_side_px: int = Field(2048, ge=16, le=8192, description="Longest side of an image in pixels")
    max_body_mib: int = Field(256, ge=1, le=2047, description="MiB of a request, and of all that it unpacks to")
    device: Annotated[str, Flag(terminal_only=True)] = Field("auto", description="auto, cpu, cuda or cuda:1")
    weights: WeightsFolder = None


def read_token(file: Path | None) -> str | None:
    """The token of a file or of the environment; None where there is none.

    Raises:
        UserError: the file cannot be read, or the token is too short or cannot stand in a header.
    """
    if file is not None:
        try:
            token, where = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read as the token's file ({error}).") from error
    else:
        token, where = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not token:
            return None
    if len(token) < LEAST_TOKEN_CHARACTERS or not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            f"{where}: a token has {LEAST_TOKEN_CHARACTERS} or more letters, digits and signs and no spaces; make one "
            'by: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token


def settle_serve(options: ServeOptions, _data: Path) -> ServeOptions:
    """Refuse to serve the network without a token.

    Raises:
        UserError: the address is not this machine's own and there is no token, or it is no good.
    """
    if read_token(options.token_file) is None and not is_loopback(options.host):
        raise UserError(
            f"--host {options.host} would let everyone in the network in; give --token-file FILE or set "
            f"{TOKEN_VARIABLE}, or leave --host out."
        )
    return options


def run_serve(options: ServeOptions, place: Place) -> None:
    """Load the model and serve it until a signal ends it."""
    token, listener = read_token(options.token_file), open_listener(options.host, options.port)

    from reward.score.scorer import load_scorer  # here: these load torch, which --help need not wait for
    from reward.serve.contract import Limits
    from reward.serve.server import make_app, serve
    from training.device import choose_device

    weights = choose_weights_folder(options.weights, place.data)
    scorer = load_scorer(options.reward, choose_device(options.device), weights_dir=weights)
    limits = Limits(
        max_images=options.max_images, max_side_px=options.max_side_px, max_body_bytes=options.max_body_mib * 2**20
    )
    app = make_app(scorer, limits, options.batch_size, token)
    host = f"[{options.host}]" if ":" in options.host else options.host
    said = f"{scorer.name}, version {scorer.version!r}, {'with' if token else 'without'} a token"
    print(f"{said}, is ready at http://{host}:{listener.getsockname()[1]}  (stop it with Ctrl+C)", flush=True)
    before = listen(lambda *_: None, INSISTING)  # uvicorn sends itself again what ended it
    try:
        serve(app, listener)
    finally:
        give_back(before)
    print("stopped", flush=True)


SERVE = Command(
    "reward serve",
    "answer over HTTP what images are worth to a reward model",
    ServeOptions,
    run_serve,
    "GET /health, GET /version and POST /score, until Ctrl+C; docs/reward.md has what is sent and answered. "
    "It is no run: nothing is recorded of it.",
    settle_serve,
)
