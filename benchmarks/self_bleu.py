"""What Self-BLEU costs: ours beside NLTK, and how ours grows with the number of texts.

`python -m benchmarks.self_bleu --data FOLDER` takes the real news of AG News (`ag_news/` in that folder); without it
texts are drawn from a Zipfian vocabulary. Tokens are ready-made, and n-grams go up to 5. Both score every text; NLTK
all orders in one call, as it is fastest.
"""

import argparse
import csv
import gzip
import json
import resource
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import Contestant, Figures, Ratio, report, run_alone, run_rounds
from benchmarks.retrieval import draw_texts
from pipeline.quality.self_bleu import score_against_others
from pipeline.quality.tokens import tokenise

MODULE = "benchmarks.self_bleu"
MAX_N = 5
MEDIAN_WORDS = 36
"""Of a generated text; about as AG News."""
N_COMPARED = 1_000
SIZES = 100, 300, 1_000, 3_000, 10_000


def read_tokens(n: int, data: Path | None) -> list[list[str]]:
    """Return the tokens of `n` texts, the same each time."""
    if data is None:
        return tokenise(draw_texts(n, MEDIAN_WORDS), "words")
    with (data / "ag_news/test.csv").open(encoding="utf-8", newline="") as lines:
        texts = [f"{title} {description}" for _, title, description in csv.reader(lines)]
    with gzip.open(data / "ag_news/keaml_ag_corpus.tsv.gz", "rt", encoding="utf-8") as lines:
        texts += [line.rstrip("\n").split("\t")[-1] for line in lines][1:]
    if len(texts) < n:
        raise ValueError(f"{data} holds {len(texts)} texts, {n} are needed")
    return tokenise(texts[:n], "words")


def measure_ours(texts: list[list[str]]) -> Figures:
    """Every text, by looking up the two highest counts of each n-gram."""
    started = time.perf_counter()
    scores = score_against_others(texts, MAX_N)
    duration_s = time.perf_counter() - started
    return {**_describe(texts, duration_s), "self_bleu_5": float(scores[:, -1].mean())}


def measure_nltk(texts: list[list[str]]) -> Figures:
    """Every text against all others; and how far ours is from it."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    weights = [(1 / n,) * n for n in range(1, MAX_N + 1)]
    smoothing = SmoothingFunction().method1
    started = time.perf_counter()
    scores = [sentence_bleu(texts[:i] + texts[i + 1 :], text, weights, smoothing) for i, text in enumerate(texts)]
    duration_s = time.perf_counter() - started
    difference = np.abs(np.array(scores) - score_against_others(texts, MAX_N)).max()
    return {**_describe(texts, duration_s), "largest_difference_from_ours": float(difference)}


def _describe(texts: list[list[str]], duration_s: float) -> Figures:
    return {
        "ms_per_text": 1e3 * duration_s / len(texts),
        "duration_s": duration_s,
        "tokens_per_text": sum(map(len, texts)) / len(texts),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


CONTESTANTS = {"nltk": measure_nltk, "ours": measure_ours}


def read_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of real texts; without it all are generated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CONTESTANTS, help="measure this one in this process")
    parser.add_argument("--texts", type=int, default=N_COMPARED, help="how many `--only` measures")
    return parser.parse_args()


def main() -> None:
    """Measure all contestants, or the one that `--only` names."""
    arguments = read_arguments()
    if arguments.only:
        texts = read_tokens(arguments.texts, arguments.data)
        sys.stdout.write(json.dumps(CONTESTANTS[arguments.only](texts)) + "\n")
        return
    if arguments.data is None:
        sys.stderr.write("texts are generated; --data FOLDER takes real ones\n")
    data = [f"--data={arguments.data}"] if arguments.data else []
    contestants = [
        Contestant(f"{only}@{n}", partial(run_alone, MODULE, [f"--only={only}", f"--texts={n}", *data]))
        for only, n in [("nltk", N_COMPARED), *(("ours", n) for n in SIZES)]
    ]
    rounds = run_rounds(contestants, arguments.rounds)
    ratios = [
        Ratio(f"nltk/ours@{N_COMPARED}", "ms_per_text", f"nltk@{N_COMPARED}", f"ours@{N_COMPARED}"),
        Ratio(f"growth@{SIZES[-1]}/{N_COMPARED}", "ms_per_text", f"ours@{SIZES[-1]}", f"ours@{N_COMPARED}"),
    ]
    report("self_bleu", rounds, ratios)


if __name__ == "__main__":
    main()
