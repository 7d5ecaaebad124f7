"""A document's text as people read it: without markup, invisible characters and loose white space.

Cleaning is by rule, not by a parser of HTML: a parser mends what is none, and takes the ticker symbol in `Apple
<AAPL.O> rose` for a tag, or all behind `i<n` for the inside of one. Here only the elements that HTML has are markup.
"""

import html
import re
from collections.abc import Callable
from unicodedata import normalize

from pipeline.config import Config

_BLOCKS = (
    "address|article|aside|blockquote|body|br|caption|center|dd|details|dialog|dir|div|dl|dt|fieldset|figcaption|figure|"
    "footer|form|frameset|h[1-6]|head|header|hr|html|legend|li|main|menu|nav|noscript|ol|optgroup|option|p|pre|section|"
    "select|summary|table|tbody|td|textarea|tfoot|th|thead|title|tr|ul"
)
"""Elements that stand on lines of their own, so that they part words."""
_INLINES = (
    "a|abbr|acronym|applet|area|audio|b|base|basefont|bdi|bdo|big|button|canvas|cite|code|col|colgroup|data|datalist|del|"
    "dfn|em|embed|font|frame|i|iframe|img|input|ins|kbd|label|link|map|mark|meta|meter|nobr|object|output|param|picture|"
    "progress|q|rp|rt|ruby|s|samp|script|small|source|span|strike|strong|style|sub|sup|svg|template|time|track|tt|u|var|"
    "video|wbr"
)
_UNSEEN = re.compile(
    r"<(?P<unseen>script|style)(?=[\s/>])[^>]*>.*?</(?P=unseen)\s*>|<!--.*?-->|<!doctype[^<>]*>|<\?xml[^<>]*>",
    re.IGNORECASE | re.DOTALL,
)
"""What a browser shows nothing of."""
_TAG = re.compile(
    rf"</?(?:(?P<block>{_BLOCKS})|{_INLINES})(?=[\s/>])(?:=\s*\"[^\"]*\"|=\s*'[^']*'|[^<>])*+>",
    re.IGNORECASE,
)
_MARKUP = re.compile(f"{_UNSEEN.pattern}|{_TAG.pattern}", re.IGNORECASE | re.DOTALL)
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # control characters, but for white space
    "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


class CleaningConfig(Config):
    """What is done to a document's text besides collapsing its white space."""

    html: bool
    """Whether to take out HTML, and to make characters of character references such as `&amp;`."""
    unicode: bool
    """Whether to compose characters (NFC) and to take out control, zero-width and direction characters."""


def clean(text: str, config: CleaningConfig) -> str:
    """Return a text cleaned; a clean text stays as it is.

    White space becomes one space, or one line feed where it holds a line break. Block elements part words, inline ones
    don't. A character reference that would read as markup (`&lt;b&gt;`) stays one, since the text speaks of the tag.
    """
    make_visible = _make_visible if config.unicode else _keep
    text = make_visible(text)
    if config.html:
        text = _strip_html(text, make_visible)
    return "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)


def _strip_html(text: str, make_visible: Callable[[str], str]) -> str:
    if "<" in text:
        text = _TAG.sub(lambda tag: "\n" if tag["block"] else "", _UNSEEN.sub("", text))
    # Until nothing changes, because what was escaped twice would otherwise change when cleaned a second time.
    while (plain := make_visible(html.unescape(text))) != text:
        text = plain
    while _MARKUP.search(text):
        text = _MARKUP.sub(lambda found: found[0].replace("<", "&lt;"), text)
    return text


def _make_visible(text: str) -> str:
    return normalize("NFC", _INVISIBLE.sub("", text))


def _keep(text: str) -> str:
    return text
