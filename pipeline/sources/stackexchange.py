"""Posts of Stack Exchange: the raw dump's XML, one-object-a-line files made of it, and SE-PQA's tables.

A post's id is `<site>_<number>` in all three, as in SE-PQA (Kasela et al., 2024). A question's text is its title and
its body. The extras have the same names for every post; what a source or a kind of post has not is empty.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from pipeline.sources.corpus_formats import join_texts, stream_objects
from pipeline.sources.delimited import stream_csv
from pipeline.sources.streams import READ_ERRORS, Broken, RawDocument, cut_short, open_stream
from pipeline.sources.tables import Location, exists, to_text

PostKind = Literal["question", "answer"]
PostSelection = Literal["questions", "answers", "all"]

_KINDS: Mapping[str, PostKind] = {"1": "question", "2": "answer", "q": "question", "a": "answer"}
"""By the dump's `PostTypeId` and the line files' `type`. The dump has other posts too, such as tags' descriptions."""
_TAG = re.compile(r"[\w.+#-]+")
"""In `<c++><unit-tests>` and `|c++|unit-tests|`, the dump's two spellings of a list of tags, and in a plain one."""
_EXTRAS = ("site", "type", "title", "score", "date", "tags", "accepted", "parent", "owner", "account")
"""`accepted` is a question's accepted answer, or whether an answer is accepted; `owner` counts within the site,
`account` over all sites."""


@dataclass(frozen=True)
class Wanted:
    """Which posts are documents."""

    posts: PostSelection
    min_score: int | None

    def takes(self, kind: PostKind, score: int) -> bool:
        """Return whether a post is among them."""
        of_kind = self.posts in ("all", f"{kind}s")
        return of_kind and (self.min_score is None or score >= self.min_score)


def read_posts_xml(location: Location, site: str | None, wanted: Wanted) -> Iterator[RawDocument | Broken]:
    """Yield the questions and answers of a raw dump's `Posts.xml`, without holding more of it than one post.

    Args:
        location: The file.
        site: The site's short name; None: the name of the file's folder, as in `beer.stackexchange.com/Posts.xml`.
        wanted: Which posts to take.

    Raises:
        SourceError: The file can't be opened, or not read to its end.
    """
    if site is None:
        site = PurePosixPath(str(location)).parent.name.removesuffix(".com").removesuffix(".stackexchange")
    for number, row in _stream_rows(location):
        yield from _read_row(number, site, row, wanted)


def read_accounts(location: Location) -> dict[str, str]:
    """Return the account over all sites of each user of a dump, from the `Users.xml` beside its `Posts.xml`.

    Users who are gone have none. Without that file nobody has one.

    Raises:
        SourceError: The file can't be read to its end.
    """
    users = re.sub(r"Posts(\.xml[^/]*)$", r"Users\1", str(location))
    if users == str(location) or not exists(users):
        return {}
    return {row["Id"]: row["AccountId"] for _, row in _stream_rows(users) if "Id" in row and row.get("AccountId")}


def _stream_rows(location: Location) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield the number and the attributes of each row of a dump's file, without holding more of it than one."""
    from lxml import etree

    number = 0
    with open_stream(location) as stream:
        try:
            # Entities stay as they are and nothing is fetched: a dump declares none, and a file that does is no dump.
            # Without `huge_tree` the parser gives up on files of some gigabytes.
            rows = etree.iterparse(stream, tag="row", resolve_entities=False, no_network=True, huge_tree=True)
            for _, row in rows:
                number += 1
                yield number, dict(row.attrib)
                row.clear()
                while row.getprevious() is not None:
                    del row.getparent()[0]
        except (etree.XMLSyntaxError, *READ_ERRORS) as error:
            raise cut_short(location, f"row {number}", error) from error


def read_posts_jsonl(
    location: Location, wanted: Wanted, fallback_encoding: str | None
) -> Iterator[RawDocument | Broken]:
    """Yield the posts of a file with one JSON object a line.

    Common: site, id, type (`q` or `a`), user, account, score, date, text. Questions add title, tags, accepted_answer;
    answers add parent, and accepted (true or false; null where nobody knows).
    """
    for record in stream_objects(location, fallback_encoding):
        if isinstance(record, Broken):
            yield record
            continue
        post = record.values
        site, post_id, kind = to_text(post.get("site")), to_text(post.get("id")), _KINDS.get(to_text(post.get("type")))
        score = _parse_score(to_text(post.get("score")))
        if not site or not post_id or kind is None or score is None:
            yield Broken(record.line, "no post: needs site, id, type (q or a) and score")
        elif wanted.takes(kind, score):
            title = to_text(post.get("title"))
            accepted = post.get("accepted_answer") if kind == "question" else post.get("accepted")
            yield _make(
                record.line,
                f"{site}_{post_id}",
                title,
                to_text(post.get("text")),
                title=title,
                type=kind,
                score=str(score),
                date=to_text(post.get("date")),
                tags=_name_tags(to_text(post.get("tags"))),
                accepted=_name_post(site, accepted) if kind == "question" else to_text(accepted),
                parent=_name_post(site, post.get("parent")),
                owner=to_text(post.get("user")),
                account=to_text(post.get("account")),
            )


def read_se_pqa(location: Location, wanted: Wanted, fallback_encoding: str | None) -> Iterator[RawDocument | Broken]:
    """Yield the posts of SE-PQA's `questions.csv` or `answers.csv`; only the latter has a column `ParentId`.

    Raises:
        SourceError: A column is missing.
    """
    columns = ["Id", "CreationDate", "Score", "Title", "Tags", "AccountId", "Text"]
    for record in stream_csv(location, None, columns, fallback_encoding):
        if isinstance(record, Broken):
            yield record
            continue
        post = {name: to_text(value) for name, value in record.values.items()}
        kind: PostKind = "answer" if "ParentId" in post else "question"
        score = _parse_score(post["Score"])
        if not post["Id"] or score is None:
            yield Broken(record.line, f"no post: Id {post['Id']!r}, Score {post['Score']!r}")
        elif wanted.takes(kind, score):
            yield _make(
                record.line,
                post["Id"],
                post["Text"],  # begins with the title already
                title=post["Title"],
                type=kind,
                score=str(score),
                date=post["CreationDate"],
                tags=_name_tags(post["Tags"]),
                accepted=_name_in_table(post["Id"], post.get("AcceptedAnswerId", "")),
                parent=_name_in_table(post["Id"], post.get("ParentId", "")),
                account=post["AccountId"],
            )


def _read_row(number: int, site: str, post: Mapping[str, str], wanted: Wanted) -> Iterator[RawDocument | Broken]:
    missing = [name for name in ("Id", "PostTypeId", "Body", "Score") if name not in post]
    kind, score = _KINDS.get(post.get("PostTypeId", "")), _parse_score(post.get("Score", ""))
    if missing or score is None:
        yield Broken(number, f"no post: {', '.join(missing)} missing" if missing else f"no score: {post['Score']}")
    elif kind is not None and wanted.takes(kind, score):
        yield _make(
            number,
            f"{site}_{post['Id']}",
            post.get("Title", ""),
            post["Body"],
            title=post.get("Title", ""),
            type=kind,
            score=str(score),
            date=post.get("CreationDate", ""),
            tags=_name_tags(post.get("Tags", "")),
            accepted=_name_post(site, post.get("AcceptedAnswerId")),
            parent=_name_post(site, post.get("ParentId")),
            owner=post.get("OwnerUserId", ""),
        )


def _make(line: int, own_id: str, *texts: str, **known: str) -> RawDocument:
    extras = dict.fromkeys(_EXTRAS, "") | {"site": own_id.rpartition("_")[0]} | known
    return RawDocument(own_id, join_texts(texts), extras, line)


def _name_tags(text: str) -> str:
    return " ".join(_TAG.findall(text))


def _name_post(site: str, post_id: Any) -> str:
    return "" if post_id is None else f"{site}_{post_id}"


def _name_in_table(own_id: str, post_id: str) -> str:
    """Return the full id of a post of the same site; a table that was written by way of floats has 3.0."""
    number = post_id.removesuffix(".0")
    return f"{own_id.rpartition('_')[0]}_{number}" if number.isdigit() else post_id


def _parse_score(text: str) -> int | None:
    try:
        return int(float(text))  # a table that was written by way of floats has 3.0
    except (ValueError, OverflowError):
        return None
