"""Fits of gold reward over √KL, held to SciPy's and to curves that are known."""

import numpy as np
import pytest
from scipy.optimize import curve_fit, minimize_scalar

from rlhf_jax.evaluation import fit_overoptimization

FORMS = {
    "rl": lambda d, alpha, gamma: d * (alpha - gamma * np.log(d)),
    "best_of_n": lambda d, alpha, gamma: d * (alpha - gamma * d),
}


@pytest.mark.parametrize("method", FORMS)
def test_fit_is_the_least_squares_of_scipy(method):
    rng = np.random.default_rng(0)
    d = rng.uniform(0.1, 4.0, 40)
    gold = FORMS[method](d, 0.7, 0.3) + rng.normal(0, 0.05, 40)
    fit = fit_overoptimization(d**2, gold, method=method)
    expected, _ = curve_fit(FORMS[method], d, gold, p0=(1.0, 1.0))
    np.testing.assert_allclose((fit.alpha, fit.gamma), expected, rtol=1e-5)
    rest = gold - FORMS[method](d, *expected)
    r_squared = 1 - np.mean(rest**2) / gold.var()
    np.testing.assert_allclose(fit.r_squared, r_squared, rtol=1e-6)
    np.testing.assert_allclose(fit.gain(d), FORMS[method](d, *expected), rtol=1e-5)


@pytest.mark.parametrize("method", FORMS)
def test_the_peak_is_the_maximum_of_the_curve(method):
    d = np.linspace(0, 5, 20)
    curve = lambda d: float(FORMS[method](d, 0.8, 0.4))
    gold = [0.0, *map(curve, d[1:])]
    fit = fit_overoptimization(d**2, gold, method=method)
    best = minimize_scalar(lambda d: -curve(d), bounds=(1e-6, 5), method="bounded")
    np.testing.assert_allclose(fit.peak, best.x, rtol=1e-4)
    assert fit.gain(0.0) == 0.0


@pytest.mark.parametrize("method", FORMS)
def test_what_never_falls_has_no_peak(method):
    d = np.linspace(0.5, 5, 20)
    fit = fit_overoptimization(d**2, FORMS[method](d, 0.8, -0.1), method=method)
    assert fit.peak == float("inf")


def test_best_of_n_that_falls_from_the_start_is_best_at_the_reference():
    d = np.linspace(0, 3, 9)
    fit = fit_overoptimization(d**2, d * (-0.5 - 0.1 * d), method="best_of_n")
    assert fit.peak == 0.0


@pytest.mark.parametrize(
    ("kl", "gold", "said"),
    [
        ([0.0, 1.0], [0.0, 1.0], "2 distances: expected three"),
        ([1.0, 1.0, 1.0], [0.0, 1.0, 2.0], "1 distances"),
        ([0.0, -0.1, 1.0], [0.0, 1.0, 2.0], r"kl = -0\.1: expected 0 or above"),
        ([0.0, np.nan, 1.0], [0.0, 1.0, 2.0], "finite"),
        ([0.0, 1.0, 2.0], [0.0, 1.0], r"expected \[N\], \[N\]"),
    ],
)
def test_what_cannot_be_fitted_is_refused(kl, gold, said):
    with pytest.raises(ValueError, match=said):
        fit_overoptimization(kl, gold, method="rl")
