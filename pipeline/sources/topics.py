"""Topics: what the teacher is asked about, one seed each."""

from pipeline.errors import SourceError
from pipeline.identity import digest
from pipeline.records import Seed
from pipeline.sources.tables import Location, Row, read_lines, read_rows


def read_topics(location: Location, column: str) -> list[Seed]:
    """Return the distinct topics in the file's order; what differs in case or spacing only is one topic, the first.

    Args:
        location: A `.txt` with a topic a line, or a table (see `read_rows`).
        column: The table's column of topics; not used for a `.txt`.

    Raises:
        SourceError: The file is missing, empty or broken, or a topic is blank.
    """
    seeds: dict[str, Seed] = {}
    for line, values in _read_topic_rows(location, column):
        topic = values["topic"]
        if not topic:
            raise SourceError(f"{location}, line {line}: a blank topic; expected a few words")
        seed_id = digest(" ".join(topic.casefold().split()))
        seeds.setdefault(seed_id, Seed(seed_id=seed_id, text=topic, group=seed_id))
    return list(seeds.values())


def _read_topic_rows(location: Location, column: str) -> list[Row]:
    if not str(location).lower().endswith((".txt", ".txt.gz")):
        return read_rows(location, {"topic": column})
    rows = [Row(line, {"topic": text.strip()}) for line, text in read_lines(location)]
    if not rows:
        raise SourceError(f"{location}: the file is empty; expected a topic a line")
    return rows
