"""Documents from corpora as their publishers give them: AG News, 20 Newsgroups, Amazon, RealNews."""

import html
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pipeline.errors import SourceError
from pipeline.identity import digest
from pipeline.sources.corpus_formats import join_texts, stream_objects
from pipeline.sources.delimited import stream_csv
from pipeline.sources.streams import Broken, RawDocument, Record, read_whole, stream_lines
from pipeline.sources.tables import Location, to_text

DomainSelection = Literal["all", "india", "regional", "dominant"]
"""Which news sites: Indian ones; those outside the United States and Britain, India included; or all but these."""

_AG_NEWS = ["class", "title", "description"]
_LOST_AMPERSAND = re.compile(r" ?#(\d{2,4});")
_HEADER = re.compile(r"[!-9;-~]+:")
"""A field's name and colon, as RFC 822 has them."""
_BLANK_LINES = re.compile(r"\n\s*\n")


class DomainLists(NamedTuple):
    """The news sites of each part of the world."""

    india: frozenset[str]
    regional: frozenset[str]
    """Outside the United States and Britain, without those of India."""


def read_ag_news(location: Location, fallback_encoding: str | None) -> Iterator[RawDocument | Broken]:
    """Yield the articles of an official AG News file, their titles before their descriptions; see `stream_ag_news`."""
    for record in stream_ag_news(location, fallback_encoding):
        if isinstance(record, Broken):
            yield record
        else:
            title, description = record.values["title"], record.values["description"]
            extras = {"class": record.values["class"], "title": title}
            yield RawDocument("", join_texts([title, description]), extras, record.line)


def stream_ag_news(location: Location, fallback_encoding: str | None) -> Iterator[Record | Broken]:
    r"""Yield the rows of an official AG News file, a CSV of class, title and description without a header.

    In these files a backslash stands for a line break, and texts went through HTML's escaping once more than they came
    out of it, some losing an ampersand: `Oil #39;s`, `&lt;b&gt;`.
    """
    for record in stream_csv(location, _AG_NEWS, _AG_NEWS, fallback_encoding):
        if isinstance(record, Broken):
            yield record
        elif record.values["class"] not in ("1", "2", "3", "4"):
            yield Broken(record.line, f"class {record.values['class']!r}, expected 1, 2, 3 or 4")
        else:
            yield Record(record.line, {name: _restore(value) for name, value in record.values.items()})


def read_newsgroups20(location: Location, fallback_encoding: str | None) -> Iterator[RawDocument | Broken]:
    """Yield the one message of a file of 20 Newsgroups, without its header; the folder's name is its group.

    Lines are joined to paragraphs: the messages are wrapped by hand.
    """
    message = read_whole(location, fallback_encoding)
    if isinstance(message, Broken):
        yield message
        return
    header, _, body = message.partition("\n\n")
    if not _HEADER.match(header):
        yield Broken(1, "no message: a header is missing")
        return
    fields = dict(line.split(": ", 1) for line in header.split("\n") if ": " in line)
    group, name = str(location).split("/")[-2:]
    extras = {"group": group, "subject": fields.get("Subject", "").strip()}
    text = "\n".join(" ".join(paragraph.split()) for paragraph in _BLANK_LINES.split(body))
    yield RawDocument(f"{group}/{name}", text, extras, 1)


def read_amazon_reviews(location: Location, fallback_encoding: str | None) -> Iterator[RawDocument | Broken]:
    """Yield the reviews of a file of the Amazon review data (2014, 2018, 2023), their titles before their texts."""
    for record in stream_objects(location, fallback_encoding):
        if isinstance(record, Broken):
            yield record
            continue
        values = record.values
        title = _first(values, "summary", "title")
        reviewer, product = _first(values, "reviewerID", "user_id"), _first(values, "asin")
        extras = {
            "title": title,
            "asin": product,
            "rating": _first(values, "overall", "rating"),
            "time": _first(values, "unixReviewTime", "timestamp"),
        }
        own_id = f"{reviewer}-{product}" if reviewer and product else ""
        yield RawDocument(own_id, join_texts([title, _first(values, "reviewText", "text")]), extras, record.line)


def read_amazon_products(location: Location, fallback_encoding: str | None) -> Iterator[RawDocument | Broken]:
    """Yield the products of a file of Amazon's product metadata (2018; Ni et al., 2019): title and description."""
    for record in stream_objects(location, fallback_encoding):
        if isinstance(record, Broken):
            yield record
            continue
        title, description = (to_text(record.values.get("title")), _list(record.values.get("description")))
        if "getTime" in title:  # the publishers' own mark of the rows whose title is a piece of the page's script
            yield Broken(record.line, "the title is source code of the page")
            continue
        asin = to_text(record.values.get("asin"))
        extras = {"asin": asin, "title": title, "category": " > ".join(_list(record.values.get("category")))}
        yield RawDocument(asin, join_texts([title, *description]), extras, record.line)


def read_realnews(
    location: Location, selection: DomainSelection, lists: DomainLists, fallback_encoding: str | None
) -> Iterator[RawDocument | Broken]:
    """Yield the articles of a file of RealNews whose news site is among those wanted."""
    for record in stream_objects(location, fallback_encoding):
        if isinstance(record, Broken):
            yield record
            continue
        url = to_text(record.values.get("url"))
        domain = to_text(record.values.get("domain")) or _name_host(url)
        if not domain and selection != "all":
            yield Broken(record.line, "neither domain nor url, so the news site is unknown")
        elif _is_selected(domain.lower(), selection, lists):
            extras = {
                "title": to_text(record.values.get("title")),
                "domain": domain,
                "url": url,
                "date": to_text(record.values.get("publication_date")),
            }
            yield RawDocument(url, to_text(record.values.get("text")), extras, record.line)


def read_domain_lists(india: str | None, regional: str | None) -> DomainLists:
    """Return the lists of news sites: a domain a line, `#` before a remark. None: the list that comes with the package.

    Raises:
        SourceError: A list is missing or empty.
    """
    return DomainLists(_read_domains(india, "india.txt"), _read_domains(regional, "regional.txt"))


def identify_domain_lists(lists: DomainLists) -> str:
    """Return a digest of what the lists hold."""
    return digest([sorted(lists.india), sorted(lists.regional)])


def _read_domains(location: str | None, own_list: str) -> frozenset[str]:
    if location is None:
        text = (resources.files("pipeline.sources") / "domains" / own_list).read_text()
        lines = text.split("\n")
    else:
        found = list(stream_lines(location, None))
        lines = [line.text for line in found if not isinstance(line, Broken)]
        if len(lines) < len(found):
            raise SourceError(f"{location}: not UTF-8; save the list of domains as UTF-8")
    domains = frozenset(line.partition("#")[0].strip().lower() for line in lines) - {""}
    if not domains:
        raise SourceError(f"{location}: the file is empty; expected a domain a line, such as example.org")
    return domains


def _is_selected(domain: str, selection: DomainSelection, lists: DomainLists) -> bool:
    if selection == "all":
        return True
    parts = domain.split(".")
    parents = {".".join(parts[start:]) for start in range(len(parts))}
    is_indian = not lists.india.isdisjoint(parents)
    is_regional = is_indian or not lists.regional.isdisjoint(parents)
    return {"india": is_indian, "regional": is_regional, "dominant": not is_regional}[selection]


def _name_host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _restore(text: str) -> str:
    return html.unescape(_LOST_AMPERSAND.sub(r"&#\1;", text)).replace("\\", " ")


def _first(values: Any, *names: str) -> str:
    """Return the value under the first of the names that there is; editions of a data set name things differently."""
    return next((to_text(values[name]) for name in names if name in values), "")


def _list(value: Any) -> list[str]:
    return [to_text(item) for item in value] if isinstance(value, list) else [to_text(value)]
