"""`bentoml serve`, as people start it."""

import json

import pytest
from helpers import check_answer

from simplestack.packing import local_server
from simplestack.serving.errors import StackError


def test_bento_is_served_by_its_tag(bento, photo):
    with local_server.serve(f"ant_or_bee_classifier:{bento.name}") as url:
        check_answer(json.loads(local_server.predict(url, photo)))


def test_bad_setting_stops_the_server(bento, capsys):
    with pytest.raises(StackError, match="doesn't start: see its log above"):
        local_server.serve(str(bento), MAX_BYTES="much").__enter__()
    assert "\nerror: MAX_BYTES='much' is not a whole number" in capsys.readouterr().err


def test_default_port_is_the_tutorials(bento):
    assert "port: 5000" in (bento / "bento.yaml").read_text()


def test_taken_port_is_one_clear_line(bentoml_url):
    with pytest.raises(StackError, match="is taken by another program"):
        local_server.check_port(int(bentoml_url.rpartition(":")[2]))
