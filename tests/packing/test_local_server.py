"""What is checked before a server is started."""

import socket

import pytest

from simplestack.packing import local_server
from simplestack.serving.errors import StackError


def test_taken_port_is_one_clear_line():
    with socket.create_server((local_server.HOST, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} is taken by another program"):
            local_server.check_port(port)
    local_server.check_port(port)  # it is free again
