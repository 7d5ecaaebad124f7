"""Classify the texts of Parquet files with an exported student, or any sequence classifier that transformers saved.

python ray_jobs/predict.py --model runs/steps/export/<fingerprint> --input /data/queries --output /data/scored
ray job submit --working-dir . -- python ray_jobs/predict.py --model s3://BUCKET/model --input s3://BUCKET/queries \
    --output s3://BUCKET/scored --scale cluster --actors 16 --cpus 4
"""

import argparse
import logging
import sys

from pipeline.errors import RaystillError
from pipeline.launch import read_scale
from pipeline.prediction.score import PredictionConfig, predict
from pipeline.storage import Folder
from pipeline.students.engines import ENGINES


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Classify the texts of Parquet files.")
    parser.add_argument("--model", required=True, help="folder or URL: what ray_jobs/export.py ends with")
    parser.add_argument("--input", required=True, nargs="+", help="Parquet files, folders, patterns or URLs")
    parser.add_argument("--output", required=True, help="folder or URL; files that are there already are kept")
    parser.add_argument("--column", default="text", help="of the texts (default: text)")
    parser.add_argument("--engine", choices=ENGINES, help="default: onnx on CPUs where the model has it, else torch")
    parser.add_argument("--batch-size", type=_read_count, default=32, help="texts at once (default: 32)")
    parser.add_argument("--actors", type=_read_count, default=1, help="copies of the model at work (default: 1)")
    parser.add_argument("--cpus", type=_read_count, default=1, help="CPUs and threads of each (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each, with --engine torch (default: 0)")
    parser.add_argument("--scale", choices=("local", "cluster"), default="local", help="file of conf/scale")
    parser.add_argument("--shared", action="store_true", help="local folders are the same on every node")
    return parser


def _read_count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    given = make_parser().parse_args()
    try:
        config = PredictionConfig(
            model=given.model,
            inputs=tuple(given.input),
            output=given.output,
            column=given.column,
            engine=given.engine,
            batch_size=given.batch_size,
            actors=given.actors,
            cpus_per_actor=given.cpus,
            gpus_per_actor=given.gpus,
            is_shared=given.shared,
        )
        predicted = predict(config, read_scale(given.scale))
    except RaystillError as error:
        sys.exit(f"error: {error}")
    print(
        f"{predicted.n_scored} files scored, {predicted.n_kept} kept; {predicted.rows:,} rows, "
        f"{predicted.nulls:,} of them without text"
    )
    print(f"done: {Folder.at(given.output)}", flush=True)
