import pytest

from pipeline.evaluation.cost import Cost, LoadedLatency, describe_latency, measure_cost


class FakeModel:
    """Takes 10 s a call and 1 s a row; the n-th call of a row another n ms. The first calls are slow."""

    def __init__(self, n_slow):
        self.now, self.batches, self.n_slow = 0.0, [], n_slow

    def clock(self):
        return self.now

    def predict(self, texts):
        self.batches.append(texts)
        self.now += 1000 if len(self.batches) <= self.n_slow else 10 + len(texts) + len(self.batches) / 1000


def test_latency_is_of_single_rows_after_warm_up_and_throughput_of_full_batches():
    model = FakeModel(n_slow=2)
    cost = measure_cost(
        model.predict, ["a", "b", "c", "d", "e"], batch_size=2, n_warmup=2, n_single=11, clock=model.clock
    )
    # Single calls 3 to 13 take 11.003 to 11.013 s; batches 16 to 18 take 12.016 to 12.018 s for 2 rows each.
    assert cost == Cost(
        latency_p50_ms=pytest.approx(11_008),
        latency_p95_ms=pytest.approx(11_012.5),
        throughput_rows_per_s=pytest.approx(6 / (12.016 + 12.017 + 12.018)),
        batch_size=2,
        n_single=11,
    )


def test_texts_are_used_in_turn_and_every_batch_is_full():
    model = FakeModel(n_slow=0)
    measure_cost(model.predict, ["a", "b", "c"], batch_size=2, n_warmup=1, n_single=3, clock=model.clock)
    assert model.batches == [["a"], ["b"], ["c"], ["a"], ["a", "b"], ["c", "a"], ["b", "c"]]


def test_speed_needs_texts():
    with pytest.raises(ValueError, match="needs texts"):
        measure_cost(len, [], 2, 1, 1)


def test_latency_under_load_says_how_many_were_in_flight():
    # Sent at 0, 1, 2 and 3 s; the first is answered at 1 s, so it is not in flight with the second any more.
    found = describe_latency([0.0, 1.0, 2.0, 3.0], [1.0, 9.0, 9.0, 9.0])
    assert found == LoadedLatency(latency_p50_ms=9000.0, latency_p95_ms=9000.0, n_in_flight=2, n_single=4)
    assert describe_latency([3.0, 0.0, 2.0, 1.0], [9.0, 1.0, 9.0, 9.0]) == found


def test_a_break_between_two_runs_makes_the_load_no_smaller():
    n, first, second = 8, [0.0] * 8, [10_000.0] * 8
    assert describe_latency(first, [2.0] * n).n_in_flight == 8
    assert describe_latency([*first, *second], [2.0] * 2 * n).n_in_flight == 8


def test_latencies_are_spread_over_their_percentiles():
    found = describe_latency([0.0] * 101, [n / 1000 for n in range(101)])
    assert (found.latency_p50_ms, found.latency_p95_ms) == (pytest.approx(50), pytest.approx(95))
    assert found.n_single == 101
