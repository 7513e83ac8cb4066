import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.arrivals import send_times_ns


@settings(max_examples=50, deadline=None)
@given(
    rate=st.floats(0.5, 5_000),
    duration=st.floats(0.05, 3),
    arrivals=st.sampled_from(["poisson", "constant"]),
    seed=st.integers(0, 1_000),
)
def test_times_rise_within_the_duration_and_repeat_with_the_seed(rate, duration, arrivals, seed):
    times = send_times_ns(rate, duration, arrivals, np.random.default_rng(seed))
    again = send_times_ns(rate, duration, arrivals, np.random.default_rng(seed))
    np.testing.assert_array_equal(times, again)
    assert np.all(np.diff(times) >= 0)
    assert len(times) == 0 or (times[0] >= 0 and times[-1] < duration * 1e9)


def test_constant_arrivals_are_evenly_spaced():
    times = send_times_ns(100, 2.0, "constant", np.random.default_rng(0))
    assert times.tolist() == pytest.approx([i * 10_000_000 for i in range(200)], abs=1)


def test_poisson_gaps_are_exponential():
    gaps_s = np.diff(send_times_ns(1_000, 60, "poisson", np.random.default_rng(0))) / 1e9
    assert gaps_s.mean() == pytest.approx(0.001, rel=0.03)
    assert gaps_s.std() == pytest.approx(0.001, rel=0.03)
    assert (gaps_s > 0.003).mean() == pytest.approx(np.exp(-3), rel=0.1)
