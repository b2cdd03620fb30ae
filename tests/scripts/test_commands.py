"""python -m simplestack: the commands for the shell scripts."""

import socket

import pytest

from simplestack.__main__ import main
from simplestack.packing import local_server
from simplestack.serving.errors import StackError
from simplestack.training import sample


def test_taken_port_is_one_clear_line(monkeypatch):
    with socket.create_server((local_server.HOST, 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        with pytest.raises(StackError, match=f"port {port} is taken by another program"):
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
