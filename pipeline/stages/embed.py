"""From texts to vectors: a step of its own, so that all that reads the same texts by the same encoder shares them.

Students and baselines of all arms, searches and later runs find the vectors there: another head encodes nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.cluster import Cluster
from pipeline.encoder import Encoder, EncoderConfig, load_encoder
from pipeline.errors import StorageError
from pipeline.identity import digest
from pipeline.stages.inputs import Gold
from pipeline.steps import Outputs, Plan, Step, Steps
from pipeline.storage import Folder
from pipeline.weights import PinnedModel

VECTORS = "vectors.parquet"
_CODE = ("pipeline.encoder", __name__)
_BATCHES_PER_REPORT = 8
"""More than one, because sentence-transformers sorts what it is given by length, which saves padding."""


def embed(
    of: str, texts: Iterable[str], model: PinnedModel, encoder: EncoderConfig, steps: Steps, cluster: Cluster
) -> Step:
    """Return the step of some texts' vectors. Each text is encoded once, in whatever order and however often it comes.

    Like a part of an index it is told as progress where it is run, and has no line of its own among the run's steps.

    Args:
        of: What the texts belong to, shown with the progress.
        texts: The texts.
        model: The encoder's weights.
        encoder: Its settings.
        steps: Where the step is found or runs.
        cluster: Runs it as one task, with a training worker's resources.

    Raises:
        ConfigError: The encoder takes fewer tokens than it is set to, or gives vectors without a direction.
    """
    distinct = sorted(set(texts))

    def produce(folder: Folder) -> Outputs:
        training = cluster.config.training
        device = "cuda" if training.gpus_per_worker > 0 else "cpu"
        with cluster.progress(f"embed {of}", "texts", len(distinct)) as report:
            cluster.call(_encode, folder, distinct, model, encoder, device, training.threads, report)
        return Outputs(counts={"texts": len(distinct)})

    made_of = {"texts": digest(distinct), "model": model.identity}
    return steps.fulfil(Plan("embeddings", produce, encoder, made_of, _CODE))


def embed_items(
    gold: Mapping[str, Gold], model: PinnedModel, encoder: EncoderConfig, steps: Steps, cluster: Cluster
) -> dict[str, Step]:
    """Return the step of the vectors of each benchmark's items, by benchmark."""
    return {
        name: embed(name, [item.text for item in one.items], model, encoder, steps, cluster)
        for name, one in gold.items()
    }


def read_vectors(embedded: Folder, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the vectors of some of a step's texts, in their order, shape (texts, dimensions).

    Raises:
        StorageError: A text is none of the step's.
    """
    table = embedded.read_table(VECTORS)
    place = {text: row for row, text in enumerate(table["text"].to_pylist())}
    if missing := next((text for text in texts if text not in place), None):
        raise StorageError(f"{embedded} holds no vector of {missing!r}; it was made of other texts")
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors: npt.NDArray[np.float32] = flat.reshape(len(place), -1)[[place[text] for text in texts]]
    return vectors


def _encode(
    folder: Folder,
    texts: Sequence[str],
    model: PinnedModel,
    config: EncoderConfig,
    device: str,
    threads: int,
    report: Callable[[Mapping[str, int]], None],
) -> None:
    """Encode texts and write them with their vectors; runs in a task."""
    import torch

    torch.set_num_threads(threads)
    encoder = _load_encoder(model, config, device)
    size = _BATCHES_PER_REPORT * config.batch_size
    parts = []
    for start in range(0, len(texts), size):
        parts.append(encoder.encode_documents(texts[start : start + size]))
        report({"done": len(parts[-1])})
    vectors = np.concatenate(parts)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    folder.write_table(VECTORS, pa.table({"text": pa.array(texts, pa.string()), "vector": column}))


@cache  # a worker encodes an arm's rows, then a benchmark's items
def _load_encoder(model: PinnedModel, config: EncoderConfig, device: str) -> Encoder:
    return load_encoder(model, config, device)
