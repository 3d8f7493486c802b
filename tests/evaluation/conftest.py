"""What tests of scoring share."""

import socket
import time
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


@pytest.fixture
def nothing_goes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and no waiting between retries."""

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("an evaluation tried to reach the network or waited")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(time, "sleep", refused)
