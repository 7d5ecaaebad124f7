"""The body of an OpenAI-compatible answer, as far as it is used.

Servers differ in what they leave out and in what they add: a field may be null or missing wherever one was seen to be.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field

from pipeline.records import Completion, Outcome, Request


class Message(BaseModel):
    """What the model said, or why it would not."""

    content: str | None = None
    refusal: str | None = None


class Alternative(BaseModel):
    """A token that could have stood at a position, and its natural log-probability."""

    token: str
    logprob: float


class Position(BaseModel):
    """The most probable tokens at one place of the text."""

    top_logprobs: list[Alternative] = []


class Logprobs(BaseModel):
    """A position for each token of the text."""

    content: list[Position] | None = None


class Choice(BaseModel):
    """One of the texts that were asked for; here there is always one."""

    message: Message
    finish_reason: str | None = None
    logprobs: Logprobs | None = None

    @property
    def outcome(self) -> Outcome:
        """What a teacher can tell of it; `error` where there is no text."""
        if self.message.refusal or self.finish_reason == "content_filter":
            return Outcome.REFUSED
        if self.finish_reason == "length":
            return Outcome.TRUNCATED  # also without a text: a model can think until its tokens are used up
        return Outcome.ERROR if self.message.content is None else Outcome.OK

    def read_logprobs(self, choices: Sequence[str]) -> dict[str, float]:
        """Return the log-probability of each choice as the first token, however spelled; none if one lacks."""
        if self.logprobs is None or not self.logprobs.content:
            return {}
        found = {}
        for choice in choices:
            alternatives = self.logprobs.content[0].top_logprobs
            spellings = [a.logprob for a in alternatives if _fold(a.token) == _fold(choice)]
            if not spellings:
                return {}
            found[choice] = float(np.logaddexp.reduce(spellings))
        return found


class PromptDetails(BaseModel):
    """What became of the prompt's tokens."""

    cached_tokens: int | None = None


class Usage(BaseModel):
    """Tokens that were counted, and are paid for."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None

    @property
    def n_cached_tokens(self) -> int:
        """Prompt tokens that the engine had in its prefix cache."""
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0


class ChatReply(BaseModel):
    """The whole body."""

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None

    def to_completion(self, request: Request, attempt: int, started_at: float, latency_s: float) -> Completion:
        """Return what it says of one attempt, as it stands there."""
        choice, usage = self.choices[0], self.usage or Usage()
        outcome = choice.outcome
        return Completion(
            request_id=request.request_id,
            attempt=attempt,
            outcome=outcome,
            text=choice.message.refusal or choice.message.content or "",
            finish_reason=choice.finish_reason or "",
            n_prompt_tokens=usage.prompt_tokens,
            n_completion_tokens=usage.completion_tokens,
            started_at=started_at,
            latency_s=latency_s,
            error="the endpoint sent no text" if outcome is Outcome.ERROR else "",
            n_cached_tokens=usage.n_cached_tokens,
            choice_logprobs=choice.read_logprobs(request.choices),
        )


def _fold(text: str) -> str:
    return text.strip().casefold()
