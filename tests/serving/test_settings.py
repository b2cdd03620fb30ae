"""Settings: environment variables; a wrong one is named in one line."""

import re
from dataclasses import asdict, fields

import pytest
from helpers import PROJECT

from simplestack.serving import settings
from simplestack.serving.errors import StackError

NUMBERS = ("MAX_BYTES", "MAX_PIXELS", "MAX_REQUESTS", "TIMEOUT", "PORT", "WEB_CONCURRENCY")
NO_NUMBER = "is not a whole number above 0, of at most 15 digits: correct or unset it"
ORIGINS = "separate origins such as https://example.com by commas, or set * for all"
TOKEN = "API_TOKEN can't be sent in a header: leave out line breaks, and spaces at its ends"  # noqa: S105


def test_unset_settings_have_their_defaults():
    empty = {"API_TOKEN": "", "CORS_ORIGINS": ""}
    assert settings.read({}) == settings.read(empty) == settings.Settings()


def test_every_setting_is_read_from_the_variable_with_its_name_in_capitals():
    numbers = {name: i for i, name in enumerate(NUMBERS, 1)}
    origins = "https://a.org, http://b.org:8000,"
    texts = {"API_TOKEN": "a b", "METRICS": "off", "CORS_ORIGINS": origins}
    read = settings.read({**{name: f"00{i}" for name, i in numbers.items()}, **texts})
    origins = ("https://a.org", "http://b.org:8000")
    assert asdict(read) == {
        **{name.lower(): i for name, i in numbers.items()},
        **{"api_token": "a b", "metrics": "off", "cors_origins": origins},
    }
    assert settings.read({"CORS_ORIGINS": "*"}).cors_origins == ("*",)
    assert settings.read({"MAX_PIXELS": "9" * 15}).max_pixels == 10**15 - 1


def test_the_table_in_the_documentation_has_every_setting_and_its_default():
    text = (PROJECT / "docs" / "api.md").read_text().partition("\n## Settings\n")[2]
    table = dict(re.findall(r"^\| `(\w+)` \| (\S+) \| ", text, re.MULTILINE))
    defaults = {x.name.upper(): str(x.default or "none") for x in fields(settings.Settings)}
    assert table == defaults | {"BENTOML_HOME": "~/bentoml"}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        *((name, "0", f"{name}='0' {NO_NUMBER}") for name in NUMBERS),
        *(("TIMEOUT", x, f"TIMEOUT='{x}' {NO_NUMBER}") for x in ("-1", "ten", "1.5", "²", "٣")),
        ("PORT", "", f"PORT='' {NO_NUMBER}"),
        ("MAX_BYTES", "9" * 16, f"MAX_BYTES='{'9' * 16}' {NO_NUMBER}"),
        ("MAX_BYTES", "9" * 5000, f"MAX_BYTES='{'9' * 20}' {NO_NUMBER}"),
        *(("API_TOKEN", value, TOKEN) for value in (" a", "a ", "a\nb", "\udcff")),
        *(
            ("METRICS", x, f"METRICS='{x[:20]}' is neither on nor off: correct or unset it")
            for x in ("", "0", "OFF", "o" * 30)
        ),
        *(
            ("CORS_ORIGINS", f"*, {x}", f"CORS_ORIGINS='{x}' is not an origin: {ORIGINS}")
            for x in ("example.com", "https://a.org/x")
        ),
    ],
)
def test_a_wrong_setting_is_one_clear_line(name, value, sentence):
    with pytest.raises(StackError) as raised:
        settings.read({name: value})
    assert str(raised.value) == sentence


def test_a_wrong_setting_ends_the_program_with_the_line(monkeypatch):
    assert settings.checked() == settings.Settings()
    monkeypatch.setenv("MAX_BYTES", "much")
    with pytest.raises(SystemExit, match=f"^error: MAX_BYTES='much' {NO_NUMBER}$"):
        settings.checked()
