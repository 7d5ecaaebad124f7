"""The endpoint that other tests and benchmarks use: its faults, and what the openai teacher makes of them."""

import math
from collections import Counter

import pytest

from pipeline.config import validate
from pipeline.records import Outcome, Seed
from pipeline.tasks.ambiguity import PairedConfig, parse, write_prompts
from tests.endpoint import OK, draw, serve
from tests.scripted import KEY, complete_at, key_of, read_conf, request_for


def predict(shares, seed, request, max_calls) -> list[str]:
    """Return what the calls for one request meet, until one is not sent again."""
    met = []
    while len(met) < max_calls and (not met or met[-1] == "rate_limited"):
        met.append(draw(seed, shares, key_of(request), len(met) + 1))
    return met


@pytest.mark.parametrize("form", ["json_schema", "strict_json_schema"])
def test_every_prompt_gets_as_many_calls_as_its_faults_need(form):
    shares = {"rate_limited": 0.4, "malformed": 0.1, "truncated": 0.1}
    method = validate(PairedConfig, {**read_conf("method/paired"), "n_intents": 3})
    requests = []
    for n in range(60):
        (prompt,) = write_prompts([Seed(f"t{n}", f"topic {n}", f"t{n}")], {}, method, 1)
        requests.append(request_for(f"topic {n}", prompt.schema))
    expected = {request.request_id: predict(shares, 5, request, 4) for request in requests}
    assert {len(met) for met in expected.values()} >= {1, 2, 3, 4}
    with serve(seed=5, **shares) as endpoint:
        completions = complete_at(endpoint.base_url, requests, max_retries=3, response_format=form)
        log = endpoint.log()
    finished = [(line["prompt"], line["n"], line["kind"]) for line in log if line["finished"]]
    assert sorted(finished) == sorted((line["prompt"], line["n"], line["kind"]) for line in log if not line["finished"])
    wanted = [(key_of(r), n, kind) for r in requests for n, kind in enumerate(expected[r.request_id], start=1)]
    assert sorted(finished) == sorted(wanted)
    outcomes = {
        OK: Outcome.OK, "malformed": Outcome.INVALID_JSON, "truncated": Outcome.TRUNCATED, "rate_limited": Outcome.ERROR
    }  # fmt: skip
    texts = []
    for request, completion in zip(requests, completions, strict=True):
        parsed = parse(request, completion, method)
        assert parsed.outcome is outcomes[expected[request.request_id][-1]]
        texts += [example.text for example in parsed.examples]
    assert len(texts) > 100
    assert len(set(texts)) == len(texts)


def test_the_endpoint_gives_probabilities_for_yes_and_no_and_repeats_itself():
    requests = [request_for(str(n), choices=("yes", "no")) for n in range(20)]
    with serve() as endpoint:
        first = complete_at(endpoint.base_url, requests)
    with serve() as endpoint:
        second = complete_at(endpoint.base_url, requests)
    assert [c.text for c in first] == [c.text for c in second]
    assert {c.text for c in first} == {"yes", "no"}
    assert all(max(c.choice_logprobs, key=c.choice_logprobs.get) == c.text for c in first)


def test_the_endpoint_tells_an_unfinished_request_from_a_finished_one(tmp_path):
    with serve(log=tmp_path / "log", stall=1.0) as endpoint:
        (completion,) = complete_at(endpoint.base_url, [request_for()], timeout_s=0.2)
    assert completion.outcome is Outcome.TIMEOUT
    assert [(line["kind"], line["finished"]) for line in endpoint.log()] == [("stall", False)]


def test_the_endpoint_repeats_the_key_only_to_show_that_the_teacher_does_not(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    with serve(broken=1.0, echo_key=1) as endpoint:
        (completion,) = complete_at(endpoint.base_url, [request_for()], api_key_env="SOME_KEY", max_retries=0)
    assert "something broke Bearer [api key]" in completion.error


def test_faults_are_drawn_in_their_shares():
    shares = {"broken": 0.2, "stall": 0.1}
    drawn = Counter(draw(1, shares, f"p{n}", 1) for n in range(5000))
    assert set(drawn) == {OK, *shares}
    assert drawn["broken"] / 5000 == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 5000))
    assert draw(1, {}, "p", 1) == OK
