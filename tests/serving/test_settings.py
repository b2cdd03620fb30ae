"""Environment variables: read once, and wrong ones told in one line."""

import pytest

from simplestack.serving import settings
from simplestack.serving.errors import StackError

NUMBERS = ("MAX_BYTES", "MAX_PIXELS", "MAX_REQUESTS", "TIMEOUT", "PORT", "WEB_CONCURRENCY")


def test_unset_and_empty_settings_have_their_defaults():
    empty = dict.fromkeys(NUMBERS, "") | {"WEB_CONCURRENCY": "1"}  # gunicorn fails if it is empty
    assert settings.read({}) == settings.read(empty) == settings.Settings()


def test_empty_number_of_workers_is_one_clear_line():
    with pytest.raises(StackError, match=r"^WEB_CONCURRENCY='' is not a whole number above 0.*$"):
        settings.read({"WEB_CONCURRENCY": ""})


def test_number_of_thousands_of_digits_is_one_clear_line():
    with pytest.raises(StackError, match=r"^MAX_BYTES='9{20}' is not .* at most 15 digits.*$"):
        settings.read({"MAX_BYTES": "9" * 5000})


@pytest.mark.parametrize("token", [" a", "a ", "a\nb", "\udcff"])
def test_token_that_no_header_can_carry_is_one_clear_line(token):
    with pytest.raises(StackError, match=r"^API_TOKEN can't be sent in a header: .*$"):
        settings.read({"API_TOKEN": token})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["-1", "0", "ten", "1.5", "²", "٣"])
def test_bad_number_is_one_clear_line(name, value):
    with pytest.raises(StackError, match=f"^{name}='{value}' is not a whole number above 0.*$"):
        settings.read({name: value})


def test_port_above_the_highest_is_one_clear_line():
    with pytest.raises(StackError, match=r"^PORT=65536 is above 65535: .*$"):
        settings.read({"PORT": "65536"})


def test_origins_are_separated_by_commas():
    origins = settings.read({"CORS_ORIGINS": "https://a.org, http://b.org:8000,"}).cors_origins
    assert origins == ("https://a.org", "http://b.org:8000")


@pytest.mark.parametrize("value", ["example.com", "https://a.org/x", "https://a.org https://b.org"])
def test_bad_origin_is_one_clear_line(value):
    with pytest.raises(StackError, match=f"^CORS_ORIGINS='{value}': .* is no origin: .*$"):
        settings.read({"CORS_ORIGINS": value})


def test_check_ends_the_program_with_the_line(monkeypatch):
    monkeypatch.setenv("MAX_BYTES", "much")
    with pytest.raises(SystemExit, match=r"^error: MAX_BYTES='much' is not a whole number.*$"):
        settings.check()


def test_timeout_of_a_wrong_setting_is_the_default(monkeypatch):
    monkeypatch.setenv("TIMEOUT", "soon")
    assert settings.timeout() == settings.Settings.timeout
