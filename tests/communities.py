"""Two made-up communities, a file each: questions that share some made-up names with the answer that is accepted."""

import json
import random
from datetime import date, timedelta
from pathlib import Path

WORDS = {
    "bikes": ["wheel", "chain", "saddle", "pedal", "brake", "tyre", "gear", "frame", "spoke", "pump"],
    "gardens": ["rose", "soil", "seed", "hedge", "lawn", "tulip", "spade", "compost", "fern", "bulb"],
}
NAMES = [
    first + last for first in ("bar", "cor", "dul", "fen", "gim", "hos") for last in ("ka", "lo", "mi", "nu", "pe")
]
N_QUESTIONS = 80
N_ASKERS = 5
"""Each asks in turn, so that the sixth question of the first is number 25."""


def write_communities(folder: Path) -> Path:
    """Write `<site>.posts.jsonl`; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for site, words in WORDS.items():
        lines = "".join(json.dumps(post) + "\n" for number in range(N_QUESTIONS) for post in _make(site, words, number))
        (folder / f"{site}.posts.jsonl").write_text(lines)
    return folder


def _make(site: str, words: list[str], number: int) -> list[dict]:
    draws = random.Random(f"{site} {number}")
    first, second = words[number % 10], words[(number // 10 + 3 * number) % 10]
    matter, aside = (" ".join(draws.choices(NAMES, k=8)) for _ in range(2))
    asked = date(2020, 1, 1) + timedelta(days=number)
    common = {"site": site, "score": 3}
    question = {
        **common, "id": 10 * number, "type": "q", "user": number % N_ASKERS, "account": number % N_ASKERS,
        "date": str(asked), "title": f"How do I mend the {first}?", "tags": [first, second], "views": 1,
        "accepted_answer": 10 * number + 1, "text": f"It broke beside the {second}: {matter}.",
    }  # fmt: skip
    answers = [
        {
            **common, "id": 10 * number + place, "type": "a", "user": 10 + place, "account": 10 + place,
            "date": str(asked + timedelta(days=1)), "parent": 10 * number, "accepted": place == 1, "text": text,
        }
        for place, text in ((1, f"Clean the {first}. Look at {matter}."), (2, f"Buy a {second}. Better {aside}."))
    ]  # fmt: skip
    return [question, *answers]
