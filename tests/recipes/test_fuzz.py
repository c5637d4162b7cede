"""Whatever the text: a recipe or a RecipeError with clean messages, soon."""

from __future__ import annotations

import contextlib

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressor.errors import RecipeError
from compressor.recipe import parse_bounds, parse_recipe, write
from compressor.recipe._yaml import read, scalar

BOUNDED = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WORDS = """version name model calibration evaluation passes export verify id data samples length seed metrics width
int8-dynamic sparsity solver damping layers min max kl speedup format opset cache_memory"""
KEYS = st.sampled_from(WORDS.split()) | st.text(max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["1", "auto", "5MB"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)
FRAGMENTS = st.lists(
    st.sampled_from(
        [
            "version: 1\n",
            "name: ",
            "x",
            "\n",
            "  ",
            "- ",
            "passes:",
            ": ",
            "{",
            "}",
            "[",
            "]",
            ",",
            "&a ",
            "*a",
            "!!map ",
            "? ",
        ]
        + [
            "|",
            ">",
            "'",
            '"',
            "\\x",
            "#",
            "---\n",
            "...\n",
            "%YAML 1.1\n",
            "<<: ",
            "width",
            "0.3",
            ".nan",
            "\t",
            "\ufeff",
        ]
        + ["\u2028", "\x00", "\x1b[1m", "\ud800", "1e999", "9" * 30, "verify", "kl"]
    ),
    max_size=30,
).map("".join)


def attempt(text, options, overrides=()):
    try:
        recipe = parse_recipe(text, source="fuzz", options=options, overrides=overrides)
    except RecipeError as error:
        assert error.problems
        assert all(str(problem).strip() and str(problem).isprintable() for problem in error.problems)
    else:
        assert recipe.resolved()["version"] == 1
    with contextlib.suppress(RecipeError):
        parse_bounds(text, source="fuzz")


@BOUNDED
@given(text=st.text(max_size=200) | FRAGMENTS)
def test_any_text(text, toys):
    attempt(text, toys)


@BOUNDED
@given(value=st.dictionaries(KEYS, VALUES, max_size=8))
def test_any_mapping(value, toys):
    attempt(yaml.safe_dump(value, allow_unicode=True), toys)


@BOUNDED
@given(
    path=st.lists(KEYS | st.sampled_from(["0", "1", "-1", "[0]", "99999999999999999999"]), min_size=1, max_size=5),
    value=SCALARS.map(str) | FRAGMENTS,
)
def test_any_override(path, value, toys, good):
    attempt(good, toys, [f"{'.'.join(path)}={value}"])


@BOUNDED
@given(data=st.binary(max_size=300))
def test_any_bytes(data, toys, tmp_path):
    from compressor.recipe import load_recipe

    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    with contextlib.suppress(RecipeError):
        load_recipe(path, options=toys)


@BOUNDED
@given(value=st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans())
def test_numbers_and_words_survive_writing(value):
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    assert scalar(text) == value and type(scalar(text)) is type(value)


@BOUNDED
@given(value=st.dictionaries(KEYS, VALUES, max_size=8))
def test_written_values_are_read_again(value):
    document = read(write(value))
    if not document.problems:  # numbers that are not finite, or characters that are none
        assert read(write(document.value)).value == document.value


@pytest.mark.parametrize(
    "text",
    [
        "1e3",
        "1",
        "",
        "no",
        "null",
        "~",
        ".inf",
        "0x10",
        "12:30",
        "2001-01-01",
        "=",
        "<<",
        "- a",
        "a: b",
        "#x",
        " x ",
        "é",
    ],
)
def test_text_stays_text(text):
    assert read(write({text: [text]})).value == {text: [text]}
