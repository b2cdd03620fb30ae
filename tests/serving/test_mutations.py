"""Mutated pictures and other bodies: each gets an answer, and no address in one is visited."""

import socket

import pytest
from fuzz import SETTINGS, generate, problem


@pytest.fixture
def connections(monkeypatch) -> list[object]:
    """The addresses that this process connects to."""
    asked: list[object] = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda _, address: asked.append(address))
    return asked


def test_nothing_that_is_sent_breaks_the_service(serve, connections):
    answers, wrong = set(), []
    with serve(**SETTINGS) as client:
        for request in generate(count=60, seed=2):
            query, body, headers = request
            answer = client.post(f"/predict{query}", content=body, headers=headers)
            answers.add(answer.status_code)
            wrong.append(problem(answer, request))
    assert [line for line in wrong if line] == []
    assert {200, 400} <= answers
    assert connections == []
