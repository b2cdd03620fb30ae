"""A thousand mutated pictures and bodies, while strace sees what the server connects to."""

import shutil

import pytest
from fuzz import fuzz


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is missing: apt install strace")
def test_nothing_that_is_sent_breaks_it(bento):
    statuses, wrong = fuzz(bento, count=1000, seed=1)
    assert wrong == []
    assert set(statuses) == {200, 400, 413, 415}
