"""Where a corpus lies, and reading it: the kinds of corpora are told apart here and nowhere else."""

from collections.abc import Iterator

from pipeline.errors import SourceError
from pipeline.sources import corpus_formats, hub, published, stackexchange
from pipeline.sources.corpus_kinds import (
    AgNewsConfig,
    AmazonProductsConfig,
    AmazonReviewsConfig,
    AnyPartConfig,
    CsvConfig,
    HubConfig,
    JsonlConfig,
    Newsgroups20Config,
    ParquetConfig,
    RealNewsConfig,
    SePqaConfig,
    StackExchangeJsonlConfig,
    StackExchangePostsConfig,
    TextConfig,
    TsvConfig,
)
from pipeline.sources.streams import Broken, RawDocument, find_files


def list_files(config: AnyPartConfig, data_root: str | None) -> list[str]:
    """Return where a corpus lies, sorted: a path or URL for each file, or for each shard of a data set on the hub.

    Raises:
        SourceError: A pattern finds no file, or the data set can't be opened.
    """
    if isinstance(config, HubConfig):
        return hub.list_shards(config.name, config.config_name, config.split, config.revision)
    root = config.root or data_root or "."
    found: set[str] = set()
    for pattern in config.paths:
        files = find_files(root, pattern)
        if not files:
            raise SourceError(
                f"no file matches {pattern!r} under {root}; correct corpus.paths, corpus.root or data.root"
            )
        found.update(files)
    return sorted(found)


def identify_lists(config: AnyPartConfig) -> dict[str, str]:
    """Return the digests of the files that say which documents to take; they are no part of the configuration.

    Raises:
        SourceError: Such a file is missing or empty.
    """
    if not isinstance(config, RealNewsConfig):
        return {}
    lists = published.read_domain_lists(config.india_list, config.regional_list)
    return {"domains": published.identify_domain_lists(lists)}


def read_documents(config: AnyPartConfig, location: str) -> Iterator[RawDocument | Broken]:
    """Yield what stands in one file (or shard) of a corpus, in its order, and hold little of it in memory.

    What is no document is a `Broken`. Rows that the configuration does not ask for, such as answers where it wants
    questions, are left out.

    Raises:
        SourceError: The file can't be opened, lacks a column, or can't be read to its end.
    """
    for item in _read(config, location):
        yield item if isinstance(item, Broken) else _check(item, needs_id=config.ids == "own")


def _read(config: AnyPartConfig, location: str) -> Iterator[RawDocument | Broken]:
    match config:
        case JsonlConfig():
            return corpus_formats.read_jsonl(location, config.columns, config.fallback_encoding)
        case TsvConfig():
            return corpus_formats.read_tsv(location, config.columns, config.names, config.fallback_encoding)
        case CsvConfig():
            return corpus_formats.read_csv(location, config.columns, config.names, config.fallback_encoding)
        case ParquetConfig():
            return corpus_formats.read_parquet(location, config.columns)
        case TextConfig():
            return corpus_formats.read_text(location, config.unit, config.fallback_encoding)
        case HubConfig():
            return hub.read_hub(location, config.config_name, config.columns)
        case AgNewsConfig():
            return published.read_ag_news(location, config.fallback_encoding)
        case Newsgroups20Config():
            return published.read_newsgroups20(location, config.fallback_encoding)
        case AmazonReviewsConfig():
            return published.read_amazon_reviews(location, config.fallback_encoding)
        case AmazonProductsConfig():
            return published.read_amazon_products(location, config.fallback_encoding)
        case RealNewsConfig():
            lists = published.read_domain_lists(config.india_list, config.regional_list)
            return published.read_realnews(location, config.domains, lists, config.fallback_encoding)
        case StackExchangePostsConfig():
            return stackexchange.read_posts_xml(location, config.site, config.wanted)
        case StackExchangeJsonlConfig():
            return stackexchange.read_posts_jsonl(location, config.wanted, config.fallback_encoding)
        case SePqaConfig():
            return stackexchange.read_se_pqa(location, config.wanted, config.fallback_encoding)


def _check(document: RawDocument, needs_id: bool) -> RawDocument | Broken:
    if not document.text.strip():
        return Broken(document.line, "no text")
    if needs_id and not document.own_id:
        return Broken(document.line, "no id")
    try:
        "".join([document.own_id, document.text, *document.extras.values()]).encode()
    except UnicodeEncodeError as error:
        # JSON can spell them; neither Arrow nor a tokenizer can hold them.
        return Broken(document.line, f"no Unicode text: half a surrogate pair at character {error.start}")
    return document
