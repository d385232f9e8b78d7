"""Which addresses mean this machine, and that a taken port is said."""

from __future__ import annotations

import pytest

from db.errors import UserError
from runs.listen import is_loopback, open_listener


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_this_machine_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "localhost.example.org", "127.0.0.1.nip.io"])
def test_nothing_else_is_taken_for_it(host: str) -> None:
    assert not is_loopback(host)


def test_a_taken_port_is_said() -> None:
    with open_listener("127.0.0.1", 0) as listener:
        listener.listen()
        with pytest.raises(UserError, match="choose another with --port"):
            open_listener("127.0.0.1", listener.getsockname()[1])
