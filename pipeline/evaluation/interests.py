"""TAG: how much of what an asker asks about is what an answer's author has answered before."""

from collections.abc import Iterable

from pipeline.evaluation.fusion import Run
from pipeline.records import Candidate, Query


def score_interests(
    found: Run, queries: Iterable[Query], candidates: Iterable[Candidate]
) -> dict[str, dict[str, float]]:
    """Return a score for each document that was found for a query: |U ∩ A| / (|U| + 1).

    U are the tags of the asker's questions up to and including this one; A those of the questions that the document's
    author had answered before. Without a past it is 0. SE-PQA (arXiv 2306.16261), `testing_pers_tag.py` of its code.

    Args:
        found: What is scored.
        queries: Those of `found`, with the askers' tags.
        candidates: The documents of `found`, with their authors' tags.
    """
    interests = {query.query_id: {*query.interests} for query in queries}
    expertise = {candidate.document_id: {*candidate.expertise} for candidate in candidates}
    return {
        query_id: {
            document_id: len(interests[query_id] & expertise[document_id]) / (len(interests[query_id]) + 1)
            for document_id in scores
        }
        for query_id, scores in found.items()
    }
