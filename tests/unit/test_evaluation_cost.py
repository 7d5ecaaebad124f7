import pytest

from pipeline.evaluation.cost import Cost, measure_cost


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
