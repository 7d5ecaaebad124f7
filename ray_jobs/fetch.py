"""Fetch the benchmarks' official files into a folder, checksums verified; needs a network.

python ray_jobs/fetch.py /data
"""

import argparse
import sys

from pipeline.errors import RaystillError
from pipeline.sources.benchmarks import OFFICIAL_FILES
from pipeline.sources.downloads import fetch

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch the official ClariQ and AmbigNQ files.")
    parser.add_argument("folder", help="becomes data.root; files that are there already are kept")
    folder = parser.parse_args().folder
    try:
        for path in fetch(OFFICIAL_FILES, folder):
            print(path)
    except RaystillError as error:
        sys.exit(f"error: {error}")
    print(f"done: {folder}")
