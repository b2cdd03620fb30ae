"""Environment variables: read once, and wrong ones told in one line."""

import re
from dataclasses import asdict, fields

import pytest
from helpers import PROJECT

from simplestack.serving import settings
from simplestack.serving.errors import StackError

NUMBERS = ("MAX_BYTES", "MAX_PIXELS", "MAX_REQUESTS", "TIMEOUT", "PORT", "WEB_CONCURRENCY")


def test_unset_and_empty_settings_have_their_defaults():
    empty = dict.fromkeys(NUMBERS, "") | {"WEB_CONCURRENCY": "1"}  # gunicorn fails if it is empty
    assert settings.read({}) == settings.read(empty) == settings.Settings()


def test_every_setting_is_read_from_the_variable_with_its_name_in_capitals():
    numbers = {name: i for i, name in enumerate(NUMBERS, 1)}
    read = settings.read(
        {**dict(zip(numbers, "123456", strict=True)), "API_TOKEN": "a b", "CORS_ORIGINS": "*"}
    )
    texts = {"api_token": "a b", "cors_origins": ("*",)}
    assert asdict(read) == {name.lower(): i for name, i in numbers.items()} | texts


def test_every_setting_stands_in_the_table_with_its_default():
    text = (PROJECT / "docs" / "api.md").read_text().partition("\n## Settings\n")[2]
    table = dict(re.findall(r"^\| `(\w+)` \| (\S+) \| ", text, re.MULTILINE))
    defaults = {
        field.name.upper(): str(field.default or "none") for field in fields(settings.Settings)
    }
    assert table == defaults | {"BENTOML_HOME": "~/bentoml"}


def test_empty_number_of_workers_is_one_clear_line():
    with pytest.raises(StackError, match=r"^WEB_CONCURRENCY='' is not a whole number above 0.*$"):
        settings.read({"WEB_CONCURRENCY": ""})


@pytest.mark.parametrize("digits", [16, 5000])
def test_number_of_many_digits_is_one_clear_line(digits):
    said = (
        f"MAX_BYTES='{'9' * min(digits, 20)}' is not a whole number above 0, of at most 15 digits"
    )
    with pytest.raises(StackError, match=f"^{said}: correct or unset it$"):
        settings.read({"MAX_BYTES": "9" * digits})


@pytest.mark.parametrize(("value", "number"), [("9" * 15, 10**15 - 1), ("007", 7), ("1", 1)])
def test_a_number_has_up_to_15_digits_behind_zeros(value, number):
    assert settings.read({"MAX_PIXELS": value}).max_pixels == number


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
    assert settings.read({"PORT": "65535"}).port == 65535


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
    monkeypatch.delenv("MAX_BYTES")
    settings.check()


def test_timeout_of_a_wrong_setting_is_the_default(monkeypatch):
    for value, seconds in (("soon", settings.Settings.timeout), ("7", 7)):
        monkeypatch.setenv("TIMEOUT", value)
        assert settings.timeout() == seconds
