"""Look into an index from the shell; all its shards are opened in this process.

python ray_jobs/search.py --index runs/steps/index/0123456789abcdef --query "wind power"
"""

import argparse
import sys

from pipeline.errors import RaystillError
from pipeline.report.passages import print_passages
from pipeline.stages.search import open_here
from pipeline.storage import Folder

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Show what an index finds for a text.")
    parser.add_argument("--index", required=True, help="the folder that ray_jobs/index.py ends with")
    parser.add_argument("--query", required=True, nargs="+", help="one text or several, each in quotes")
    parser.add_argument("--k", type=int, default=5, help="documents to show (default: 5)")
    arguments = parser.parse_args()
    if arguments.k < 1:
        parser.error(f"--k is {arguments.k}; give at least 1")
    try:
        found = open_here(Folder.at(arguments.index), arguments.k).search(arguments.query)
    except RaystillError as error:
        sys.exit(f"error: {error}")
    for query, passages in zip(arguments.query, found, strict=True):
        print_passages(query, passages)
