import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.quality.text import normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's  the\tBEST\nway?!", "whats the best way"),
        ("What\u2019s up", "whats up"),
        ("What\u00b4s up", "whats up"),
        ("self-help/self_care (at home).", "self help self care at home"),
        ("C#, C++ and C", "c# c++ and c"),
        ("5% of $20", "5% of $20"),
        ("\uff28\uff25\uff2c\uff2c\uff2f", "hello"),
        ("Stra\u00dfe", "strasse"),
        ("zero\u200bwidth", "zerowidth"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),
        ("\u4ec0\u4e48\uff1f", "\u4ec0\u4e48"),
        ("?!", ""),
    ],
)
def test_normal_form(text, expected):
    assert normalise(text) == expected


@given(st.text())
def test_normal_form_holds_neither_punctuation_nor_outer_space(text):
    normal = normalise(text)
    assert normal == " ".join(normal.split())
    assert all(unicodedata.category(character)[0] not in "CP" or character in "#%&@" for character in normal)


@given(st.text(st.characters(codec="ascii")))
def test_normal_form_of_a_normal_form_is_itself(text):
    assert normalise(normalise(text)) == normalise(text) == normalise(text.upper())
