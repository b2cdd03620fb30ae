"""python -m simplestack: the commands for the shell scripts."""

import os
import socket
from unittest.mock import Mock

import psutil
import pytest

from simplestack.__main__ import main
from simplestack.packing import local_server
from simplestack.serving.errors import StackError
from simplestack.training import sample


def test_taken_port_is_one_clear_line(monkeypatch):
    with socket.create_server((local_server.HOST, 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        with pytest.raises(
            StackError, match=rf"port {port} is taken by .+ \(process {os.getpid()}\)"
        ):
            main(["check-port"])
        monkeypatch.setattr(psutil, "net_connections", Mock(side_effect=psutil.AccessDenied))
        with pytest.raises(StackError, match="is taken by another program: stop that program, or"):
            main(["check-port"])
    main(["check-port"])  # it is free again


def test_saved_path_sample_and_what_is_no_command(bento, monkeypatch, capsys):
    main(["saved-path"])
    main(["saved-path", bento.parent.name])
    assert capsys.readouterr().out == f"{bento}\n" * 2
    monkeypatch.setattr(sample, "write", print)
    main(["draw-sample", "drawn"])
    assert capsys.readouterr().out == "drawn {'train': 40, 'val': 20}\n"
    with pytest.raises(SystemExit, match="2"):
        main(["no-such-command"])
