"""The formulas of always-valid inference against numerical integrals, exact sums and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from monitors import sequential


def mixture_log_e(z: float, r: float, positive_only: bool) -> float:
    """ln of the likelihood ratio of z averaged over a normal prior of variance r, by quadrature."""
    low = 0.0 if positive_only else -40.0 * math.sqrt(r)

    def ratio(m: float) -> float:
        return math.exp(m * z - m * m / 2) * stats.norm.pdf(m, 0, math.sqrt(r))

    value = integrate.quad(ratio, low, 40.0 * math.sqrt(r), limit=500, points=[0.0])[0]
    return math.log(2 * value if positive_only else value)


@pytest.mark.parametrize(("z", "r"), [(0.0, 1.0), (2.5, 4.0), (-1.5, 0.3), (4.0, 25.0)])
def test_evidence_is_the_likelihood_ratio_averaged_over_the_mixture(z: float, r: float) -> None:
    found = sequential.evidence(gain=z, se=1.0, tau=math.sqrt(r))
    assert found.two_sided == pytest.approx(mixture_log_e(z, r, False), abs=1e-6)
    assert found.better == pytest.approx(mixture_log_e(z, r, True), abs=1e-6)
    assert found.worse == pytest.approx(mixture_log_e(-z, r, True), abs=1e-6)


@given(
    se=st.floats(1e-6, 1e6),
    tau=st.floats(1e-6, 1e6),
    alpha=st.sampled_from([0.05, 0.01, 0.001]),
)
def test_the_interval_excludes_zero_exactly_where_the_evidence_reaches_one_over_alpha(
    se: float, tau: float, alpha: float
) -> None:
    half = sequential.half_width(se, tau, alpha)
    assert sequential.evidence(half, se, tau).two_sided == pytest.approx(
        math.log(1 / alpha), rel=1e-6, abs=1e-6
    )


@given(half=st.floats(1e-4, 1e3), tau=st.floats(1e-4, 1e3))
def test_the_standard_error_for_a_width_gives_that_width(half: float, tau: float) -> None:
    se = sequential.standard_error_for(half, tau, 0.05)
    assert sequential.half_width(se, tau, 0.05) == pytest.approx(half, rel=1e-6)


def test_the_interval_is_about_three_standard_errors_wide_when_a_decision_is_due() -> None:
    assert sequential.half_width(1.0, 3.0, 0.05) == pytest.approx(3.04, abs=0.05)


def test_the_tilted_test_is_the_written_sum() -> None:
    expected = []
    for d in sequential.UPWARDS:
        one = 3 * d - 10 * math.log(1 + 0.1 * (math.exp(d) - 1))
        two = 5 * d - 5 * math.log(1 + 0.5 * (math.exp(d) - 1))
        expected.append(math.exp(one + two))
    found = sequential.tilted([0.1, 0.5], [3, 5], [7, 0], sequential.UPWARDS)
    assert found == pytest.approx(math.log(np.mean(expected)))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5])
@pytest.mark.parametrize("tilts", [sequential.BOTH_WAYS, sequential.UPWARDS], ids=["both", "up"])
def test_the_tilted_test_is_fair_at_every_sample_size(p: float, tilts: np.ndarray) -> None:
    """An e-value has mean 1 under the null, whatever the number of events."""
    for n in (1, 7, 40):
        k = np.arange(n + 1)
        e = [math.exp(sequential.tilted([p], [i], [n - i], tilts)) for i in k]
        assert float(np.dot(stats.binom.pmf(k, n, p), e)) == pytest.approx(1)


def test_the_grids_are_equally_spaced_in_the_logarithm() -> None:
    assert sequential.UPWARDS[[0, -1]] == pytest.approx([0.1, 4.0])
    assert sequential.BOTH_WAYS[[0, 19, 20, -1]] == pytest.approx([-1.5, -0.01, 0.01, 1.5])
    assert len(sequential.BOTH_WAYS) == 40
    assert np.ptp(np.diff(np.sqrt(sequential.UPWARDS))) < 1e-12


def test_a_fair_split_watched_at_every_request_is_hardly_ever_called_broken() -> None:
    """At most 0.1 % in theory; of 500 runs of 2,000 requests none or one."""
    rng = np.random.default_rng(11)
    d, p = sequential.BOTH_WAYS, 0.5
    alarms = 0
    for _ in range(500):
        ones = np.cumsum(rng.random(2000) < p)[:, None]
        n = np.arange(1, 2001)[:, None]
        terms = ones * d - n * np.log1p(p * np.expm1(d))
        alarms += bool((np.exp(terms).mean(axis=1) >= 1000).any())
    assert alarms <= 2


def test_events_without_probability_end_no_computation() -> None:
    assert math.isfinite(sequential.tilted([0.0, 1.0], [0, 4], [5, 0], sequential.BOTH_WAYS))
    assert sequential.tilted([0.0], [2], [0], sequential.BOTH_WAYS) > 0


def test_extreme_scales_stay_numbers() -> None:
    assert sequential.half_width(1e200, 1e-200, 0.05) == math.inf
    found = sequential.evidence(1e-200, 1e-200, 1e200)
    assert not any(math.isnan(x) for x in (found.two_sided, found.better, found.worse))


def test_the_p_value_of_no_evidence_is_one() -> None:
    assert sequential.capped_probability(-5.0) == 1.0
    assert sequential.capped_probability(math.log(1000)) == pytest.approx(0.001)
