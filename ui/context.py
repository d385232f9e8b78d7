"""Define what every page is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from db.session import Database
from ui.address import BaseUrl


@dataclass(frozen=True)
class Worker:
    """One of the processes that serve this app together."""

    number: int = 0
    """0 is the first: it has the admin pages and the background work."""
    count: int = 1
    sockets: Path | None = None
    """Folder of the sockets by which the workers reach one another; None where there is one."""

    def socket_of(self, number: int) -> Path | None:
        """Where a worker is reached by the others."""
        return None if self.sockets is None else self.sockets / str(number)


@dataclass(frozen=True)
class Context:
    """The open database, its data folder, and how people sign in."""

    database: Database
    data: Path
    url: str | None = None
    """Database URL where it is not the data folder's own; handed to launched runs."""
    auth: bool = False
    """Whether people sign in with a password or personal link."""
    root_path: str = ""
    """Path below which a proxy serves all this, such as '/label'; what pages link to begins with it."""
    base_url: BaseUrl | None = None
    """The address that people open, where it was given: what links begin with, and the one host that is answered."""
    cpu_slots: int = 1
    """Number of queued runs of the device 'cpu' that run at a time."""
    worker: Worker = Worker()
    """Which of the app's processes this is."""
    metrics_token: str | None = None
    """Whoever has it may read /metrics from elsewhere."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks whose word on who asks is believed."""
