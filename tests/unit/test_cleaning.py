import html
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lxml import etree

from pipeline.sources.cleaning import CleaningConfig, clean

PLAIN = CleaningConfig(html=False, unicode=False)
FULL = CleaningConfig(html=True, unicode=True)
CONFIGS = [CleaningConfig(html=html, unicode=unicode) for html in (False, True) for unicode in (False, True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>One.</p><p>Two.</p>", "One.\nTwo."),
        ("one<br>two<BR/>three", "one\ntwo\nthree"),
        ("<td>a</td><td>b</td>", "a\nb"),
        ("<ul><li>a</li>\n<li>b</li></ul>", "a\nb"),
        ("un<b>believ</b>able <i>H</i><sub>2</sub>O", "unbelievable H2O"),
        ("<mark>a</mark> <kbd>b</kbd> <a href='x'>c</a>", "a b c"),
        ('<a title="x > y" href=z>link</a>', "link"),
        ("<p class=it's>Don't</p>", "Don't"),
        ("a<script type='x'>var a = '<p>';</script >b<style>p {}</style>c", "abc"),
        ("a<!-- <p> \n -->b<!DOCTYPE html>c", "abc"),
        ("<script>never closed, so a text", "never closed, so a text"),
        ("<!-- never closed, so a text", "<!-- never closed, so a text"),
        ("AT&amp;T &lt; &#36;5 &eacute; &amp;amp;", "AT&T < $5 é &"),
        ("a&nbsp;&#8203;b", "a b"),
        ("use &lt;b&gt; or &amp;lt;i&amp;gt;, not <b>this</b>", "use &lt;b> or &lt;i>, not this"),
    ],
)
def test_html_becomes_the_text_that_a_reader_sees(text, expected):
    assert clean(text, FULL) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "if i<n then j>n",
        "x<y",
        "Apple Inc. <AAPL.O> rose",
        "STANDARD OIL <SRD> TO FORM UNIT",
        "I <3 you",
        "<name@example.org> wrote",
        "List<String> and <body_count>",
        "R&D, Q&A; fish & chips",
    ],
)
def test_what_is_no_markup_stays(text):
    assert clean(text, FULL) == text


def test_markup_stays_where_texts_are_plain():
    assert clean("<p>a &amp; b</p>", PLAIN) == "<p>a &amp; b</p>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \t b\u00a0c\u3000d ", "a b c d"),
        ("One.\r\n\r\n \n  Two.\rThree.\u2029Four.\x0cFive.", "One.\nTwo.\nThree.\nFour.\nFive."),
        (" \n ", ""),
    ],
)
def test_white_space_is_one_space_or_one_line_feed(text, expected):
    for config in CONFIGS:
        assert clean(text, config) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("in\u00advis\u200bi\u200dble\ufeff", "invisible"),
        ("a\x00b\x1bc\x7fd\x9fe", "abcde"),
        ("\u202eabc\u2066", "abc"),
        ("\ufb01ne \u00b2 \uff21", "\ufb01ne \u00b2 \uff21"),
    ],
)
def test_unicode_is_composed_and_visible(text, expected):
    assert clean(text, CleaningConfig(html=False, unicode=True)) == expected
    assert clean(text, PLAIN) == text


PIECES = st.sampled_from(
    ["<p>", "</p>", "<b", "<scr", "ipt>", "<br/>", "<!--", "-->", "&amp;", "&lt;", "&gt;", "&l", "t;", "&#60;", "&",
     "<", ">", '"', "'", "=", "a", " b", "\n", "\u200b", "\u0301", "\u0338", "&#8203;", "&nbsp;", ";", "script", "/"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=30))
@example("<scr<b></b>ipt>x")
@example("&lt;a &lt;b&gt;")
@example("&amp;lt;p&amp;gt;")
@example("&am&#8203;p;lt;p>")
@settings(deadline=None, max_examples=500)
def test_a_clean_text_stays_as_it_is(text):
    for config in CONFIGS:
        cleaned = clean(text, config)
        assert clean(cleaned, config) == cleaned


INLINE = st.text("ab <>&\u00e9\n", max_size=6).map(html.escape) | st.sampled_from(
    ["<br>", "<!-- c -->", "<i class='x'>y</i>", "<b>b</b>", "<code>a b</code>"]
)
# A paragraph ends where another block begins, so that one which holds blocks is not sound.
PARAGRAPHS = st.builds("<p>{}</p>".format, st.lists(INLINE, max_size=3).map("".join))
ELEMENTS = st.sampled_from(["div", "li", "blockquote", "b", "em", "code", "span", "a", "sup"])
HTML = st.recursive(
    INLINE | PARAGRAPHS,
    lambda inner: st.builds("<{0}>{1}</{0}>".format, ELEMENTS, st.lists(inner, max_size=3).map("".join)),
    max_leaves=8,
)


@given(st.lists(HTML, max_size=4).map("".join))
@settings(deadline=None)
def test_sound_html_becomes_what_a_parser_makes_of_it(source):
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True)
    root = etree.fromstring(f"<div>{source}</div>".encode(), parser)
    parts = []
    for event, element in etree.iterwalk(root, events=("start", "end")):
        parts.append("\n" if element.tag in ("p", "div", "li", "blockquote", "br") else "")
        parts.append((element.text if event == "start" else element.tail) or "")
    expected = "\n".join(filter(None, (" ".join(line.split()) for line in "".join(parts).splitlines())))
    assert html.unescape(clean(source, FULL)) == expected


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Z"], exclude_characters="<&")))
def test_visible_text_is_only_composed(text):
    assert clean(text, FULL) == unicodedata.normalize("NFC", text)
