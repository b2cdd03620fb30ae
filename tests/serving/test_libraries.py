"""No library inside a wheel is older than the release that closed its last known hole."""

import pytest
from libraries import LIBRARIES, Library


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_a_bundled_library_is_not_below_its_floor(library):
    assert library.loaded, f"{library.name} does not tell its version"
    assert library.is_safe(), f"{library.loaded} is below {library.floor}: {library.advisory}"


@pytest.mark.parametrize(
    ("loaded", "safe"), [("1.9.9", False), ("1.10.1", False), ("1.10.2", True), ("2.0-3-gab", True)]
)
def test_versions_are_compared_as_numbers(loaded, safe):
    assert Library("any", "1.10.2", "CVE-1", loaded).is_safe() is safe
