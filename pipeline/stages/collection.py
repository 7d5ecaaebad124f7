"""Texts that were read already, as a corpus: whatever indexes files indexes these too."""

from collections.abc import Sequence

from pipeline.cluster import Cluster
from pipeline.config import validate
from pipeline.identity import digest
from pipeline.records import Document, to_table
from pipeline.sources.corpus_kinds import ParquetConfig
from pipeline.stages.corpus import Corpus, build_corpus
from pipeline.steps import Outputs, Plan, Steps
from pipeline.storage import Folder

COLLECTION = "collection.parquet"
SHARD_DOCUMENTS = 100_000


def collect(documents: Sequence[Document], steps: Steps, cluster: Cluster) -> Corpus:
    """Return documents as a corpus that holds each of them whole, under its own id.

    Raises:
        SourceError: There are none.
    """

    def produce(folder: Folder) -> Outputs:
        folder.write_table(COLLECTION, to_table(Document, documents))
        return Outputs(counts={"documents": len(documents)})

    made_of = {"documents": digest([[one.document_id, one.text] for one in documents])}
    step = steps.fulfil(Plan("collection", produce, {}, made_of, (__name__,)))
    config = validate(
        ParquetConfig,
        {
            "kind": "parquet",
            "root": str(step.folder),
            "paths": [COLLECTION],
            "columns": {"text": ["text"], "separator": "\n", "id": "document_id", "extras": {}},
            "ids": "own",
            "cleaning": {"html": False, "unicode": False},
            "cutting": {"tokenizer": None, "revision": None, "min_tokens": 1, "max_tokens": 1, "keep": "first"},
            "near_duplicates": None,
            "max_broken_share": 0.0,
            "share": None,
            "limit": None,
            "shard_documents": SHARD_DOCUMENTS,
        },
    )
    return build_corpus(config, None, steps, cluster)
