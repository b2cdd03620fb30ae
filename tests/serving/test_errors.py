"""Errors: a printable line, and for pictures the status of the answer."""

import pytest

from simplestack.serving import errors


def test_an_error_of_a_picture_carries_its_status_and_is_known_by_its_name():
    assert {name: int(kind.status) for name, kind in errors.IMAGE_ERRORS.items()} == {
        "BadImageError": 400,
        "DamagedImageError": 400,
        "RareFormatError": 400,
        "TooLargeError": 413,
        "UnsupportedFormatError": 415,
    }


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        *(("Käfer “1”.jpg", "Käfer “1”.jpg"), ("two\nlines\t", "two\\nlines\\t"), ("", "")),
        *(("\x1b[31m", "\\x1b[31m"), ("caf\udce9", "caf\\udce9"), ("\u202e", "\\u202e")),
    ],
)
def test_a_message_is_one_line_that_controls_no_terminal(text, escaped):
    assert errors.printable(text) == str(errors.StackError(text)) == escaped
