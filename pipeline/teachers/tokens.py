"""What passes between messages and an engine's tokens: prompts on the way in, chosen words on the way out."""

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any

from pipeline.records import Message


def encode_prompt(tokenizer: Any, messages: Sequence[Message], prompt_format: str) -> list[int]:
    """Return a prompt's token ids, special tokens exactly once.

    Rendering to text first and letting the engine tokenize it would add a second beginning-of-sequence token to the
    chat templates of Llama, Mistral and Gemma.
    """
    if prompt_format == "plain":
        ids: list[int] = tokenizer.encode("\n\n".join(message.content for message in messages))
        return ids
    chat = [{"role": message.role, "content": message.content} for message in messages]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    return ids


def spell(choice: str) -> list[str]:
    """Return the ways in which a model may write a word that begins its reply."""
    words = dict.fromkeys((choice.lower(), choice.capitalize(), choice.upper()))
    return [blank + word for blank in ("", " ") for word in words]


def find_openings(tokenizer: Any, choices: Sequence[str]) -> dict[int, str]:
    """Return the tokens that may open the spelling of one choice alone, each with that choice.

    A tokenizer may know a word whole or in pieces, so every beginning of a spelling that is one token counts. One that
    opens several choices (a lone blank, say) tells nothing of any and is left out.
    """
    owners: dict[int, set[str]] = {}
    for choice in choices:
        for spelling in spell(choice):
            for end in range(1, len(spelling) + 1):
                ids = tokenizer.encode(spelling[:end], add_special_tokens=False)
                if len(ids) == 1:
                    owners.setdefault(ids[0], set()).add(choice)
    return {token: found.pop() for token, found in owners.items() if len(found) == 1}


def read_choices(logprobs: Sequence[Mapping[int, Any]] | None, openings: Mapping[int, str]) -> dict[str, float]:
    """Return each choice's log-probability, summed over the tokens that may open it.

    Args:
        logprobs: The engine's, one mapping of token to `Logprob` for each position of the reply.
        openings: As `find_openings` returns them.

    Returns:
        Empty where there are no choices, or one of them got nothing.
    """
    if not logprobs or not openings:
        return {}
    mass = dict.fromkeys(openings.values(), 0.0)
    for token, choice in openings.items():
        if token in logprobs[0]:
            mass[choice] += exp(logprobs[0][token].logprob)
    return {choice: log(p) for choice, p in mass.items()} if all(mass.values()) else {}
