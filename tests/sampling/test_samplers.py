"""Samplers with restorers whose answer is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import sample
from jax.tree_util import Partial

from colddiff.degradations import compose, gaussian_blur, gaussian_noise, split
from colddiff.degradations.schedules import cosine_alpha_bar
from colddiff.runtime.errors import UserError
from colddiff.sampling.priors import pattern
from colddiff.sampling.samplers import (
    SAMPLERS,
    check_times,
    ddim,
    ddpm,
    direct,
    draw_patterns,
    image_keys,
    naive,
    tacos,
    times_between,
    times_by_change,
    times_of_each,
    walk,
)

T, SHAPE = 10, (3, 16, 16, 2)


@pytest.fixture
def x0():
    return jax.random.uniform(jax.random.key(0), SHAPE, minval=-1, maxval=1)


@pytest.fixture
def keys():
    return image_keys(jax.random.key(5), 0, SHAPE[0])


def oracle(params, xt, t):
    """Return x0, which is `params`: a perfect restorer."""
    return params


def wrong(params, xt, t):
    """Return images far from x0, different at every step."""
    return 0.3 * xt + jnp.sin(3 * params) + t[:, None, None, None] / T


def add_e(x0, t, key):
    """Return D(x, s) = x + s e, with e drawn from the key (section 3.3)."""
    return x0 + jnp.float32(t) * 0.1 * jax.random.normal(key, x0.shape)


BLUR = gaussian_blur(image_size=16, num_steps=T, kernel_size=5, std=1.0, padding="reflect")
NOISE = gaussian_noise(num_steps=T)
ABAR = np.asarray(cosine_alpha_bar(T))  # float64
BLENDS_ONLY = ("ddim", "ddpm")


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("degrade", [BLUR, add_e, NOISE], ids=["blur", "add_e", "noise"])
@pytest.mark.parametrize("times", [range(T, -1, -1), [10, 7, 0]], ids=str)
def test_a_perfect_restorer_gives_x0(name, degrade, times, x0, keys):
    if name in BLENDS_ONLY and degrade is not NOISE:
        with pytest.raises(UserError, match="ddim and ddpm take only blends"):
            sample(SAMPLERS[name], oracle, degrade, x0, x0, keys, np.array(times))
        return
    xT = jax.vmap(degrade, (0, None, 0))(x0, T, keys)
    found = sample(SAMPLERS[name], oracle, degrade, x0, xT, keys, np.array(times))
    np.testing.assert_allclose(found, x0, atol=1e-5)


@pytest.mark.parametrize("times", [np.arange(T, -1, -1), np.array([10, 6, 5, 1, 0])], ids=str)
def test_tacos_forgives_a_wrong_restorer_and_naive_does_not(times, x0, keys):
    at = lambda s: jax.vmap(add_e, (0, None, 0))(x0, s, keys)  # noqa: E731
    found, iterates = sample(tacos, wrong, add_e, x0, at(T), keys, times, times)
    np.testing.assert_allclose(iterates, jnp.stack([at(s) for s in times]), atol=1e-5)
    np.testing.assert_allclose(found, x0, atol=1e-5)
    assert np.abs(sample(naive, wrong, add_e, x0, at(T), keys, times) - x0).mean() > 0.3


def test_each_sampler_is_its_algorithm(x0, keys):
    """Compare with the paper's loops, written out in Python."""
    times = [10, 6, 3, 0]
    D = jax.vmap(BLUR, (0, None, 0))
    R = lambda x, s: wrong(x0, x, jnp.full(SHAPE[0], s))  # noqa: E731
    xT = D(x0, T, keys)
    algorithm_1 = algorithm_2 = xT
    for s, s_next in itertools.pairwise(times):
        algorithm_1 = D(R(algorithm_1, s), s_next, keys)
        x_hat = R(algorithm_2, s)
        algorithm_2 = algorithm_2 - D(x_hat, s, keys) + D(x_hat, s_next, keys)
    arguments = (wrong, BLUR, x0, xT, keys, jnp.array(times))
    np.testing.assert_allclose(sample(naive, *arguments), algorithm_1, atol=1e-5)
    np.testing.assert_allclose(sample(tacos, *arguments), algorithm_2, atol=1e-5)
    np.testing.assert_allclose(sample(direct, *arguments), R(xT, T), atol=1e-5)


@pytest.mark.parametrize("sampler", [tacos, ddim, ddpm])
def test_noise_goes_to_x0_with_a_perfect_restorer(sampler, x0, keys):
    """Start from a prior that does not depend on x0, with fixed and estimated noise."""
    xT = jax.vmap(pattern(NOISE, T=T, shape=SHAPE[1:]))(keys)
    found = sample(sampler, oracle, NOISE, x0, xT, keys, times_between(T, T))
    # xT is D(0, T), not D(x0, T), and Algorithm 2 keeps the difference.
    expected = (1 - np.sqrt(ABAR[T])) * x0 if sampler is tacos else x0
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("times", [list(range(T, -1, -1)), [10, 7, 2, 0]], ids=str)
def test_algorithm_2_with_estimated_noise_is_ddim(times, x0, keys):
    """Compare every iterate with Algorithm 2, written out in float64 (appendix A.6)."""
    x = np.array(jax.random.normal(jax.random.key(1), SHAPE), np.float64)
    D = lambda x_hat, s, z: np.sqrt(ABAR[s]) * x_hat + np.sqrt(1 - ABAR[s]) * z  # noqa: E731
    expected = [x]
    for s, s_next in itertools.pairwise(times):
        x_hat = 0.3 * x + np.sin(3 * np.asarray(x0, np.float64)) + s / T  # `wrong`
        z_hat = (x - np.sqrt(ABAR[s]) * x_hat) / np.sqrt(1 - ABAR[s])
        x = x - D(x_hat, s, z_hat) + D(x_hat, s_next, z_hat)
        expected.append(x)
    start = jnp.asarray(expected[0], jnp.float32)
    _, iterates = sample(ddim, wrong, NOISE, x0, start, keys, np.array(times), times)
    np.testing.assert_allclose(iterates, np.stack(expected), atol=1e-5)


BIG = (4, 64, 64, 3)  # 49,152 pixels give a standard deviation to a third of a percent


@pytest.mark.parametrize(("s", "s_next"), [(10, 9), (7, 6), (3, 2), (2, 1), (9, 4), (10, 1)])
def test_a_step_of_ddpm_draws_from_the_posterior(s, s_next):
    """Compare with q(x_s' | x_s, x0) of Ho et al. 2020, equations 6 and 7, in float64 (A.8)."""
    x0, x = 0.4, -0.7
    alpha = ABAR[s] / ABAR[s_next]  # α of this step
    beta = 1 - alpha
    mean = (np.sqrt(ABAR[s_next]) * beta * x0 + np.sqrt(alpha) * (1 - ABAR[s_next]) * x) / (
        1 - ABAR[s]
    )
    variance = (1 - ABAR[s_next]) / (1 - ABAR[s]) * beta
    times = np.array([s, s_next, 0])
    keys = image_keys(jax.random.key(2), 0, BIG[0])
    answer, start = jnp.full(BIG, x0), jnp.full(BIG, x)
    _, iterates = sample(ddpm, oracle, NOISE, answer, start, keys, times, [s_next])
    assert np.mean(iterates) == pytest.approx(mean, abs=4 * np.sqrt(variance / iterates.size))
    assert np.std(iterates) == pytest.approx(np.sqrt(variance), rel=0.02)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_whole_family_keeps_the_marginals(eta):
    """Check that for any σ x_s is distributed as D(x0, s, ·) if x̂ = x0 (appendix A.8)."""
    keys = image_keys(jax.random.key(3), 0, BIG[0])
    x0 = jnp.full(BIG, 0.4)
    xT = jax.vmap(NOISE, (0, None, 0))(x0, T, keys)
    times = [10, 8, 5, 2, 1, 0]
    family = Partial(ddim, eta=eta)
    _, iterates = sample(family, oracle, NOISE, x0, xT, keys, np.array(times), times)
    for s, x in zip(times[:-1], iterates, strict=False):
        error = 4 * np.sqrt((1 - ABAR[s]) / x.size)
        assert np.mean(x) == pytest.approx(np.sqrt(ABAR[s]) * 0.4, abs=error)
        assert np.std(x) == pytest.approx(np.sqrt(1 - ABAR[s]), rel=0.02)


def test_only_ddpm_is_random(x0, keys):
    others = image_keys(jax.random.key(6), 0, SHAPE[0])
    go = lambda sampler, keys: sample(sampler, wrong, NOISE, x0, x0, keys, np.array([10, 5, 1, 0]))  # noqa: E731
    assert np.array_equal(go(ddim, keys), go(ddim, others))
    found = np.stack([go(ddpm, keys), go(ddpm, others)])
    assert np.abs(found[0] - found[1]).mean() > 0.01
    assert np.abs(found[0, 0] - found[0, 1]).mean() > 0.01


@pytest.mark.parametrize("sampler", [ddpm, Partial(ddim, eta=0.5)], ids=["ddpm", "eta=0.5"])
def test_epsilon_is_independent_of_what_a_degradation_draws(sampler):
    """Correlate ε of one step, computed in float64, with the noise that D draws from the key.

    D is `gaussian_noise`, or a degradation that numbers its draws, as `compose` does.
    """
    s, s_next = 7, 6
    keys = image_keys(jax.random.key(4), 0, BIG[0])
    x0, x = np.float64(0.4), np.float64(-0.7)
    times = np.array([s, s_next, 0])
    arguments = (jnp.full(BIG, x0), jnp.full(BIG, x), keys, times, [s_next])
    _, iterates = sample(sampler, oracle, NOISE, *arguments)
    eta = 1.0 if sampler is ddpm else 0.5
    sigma = eta * np.sqrt((1 - ABAR[s_next]) / (1 - ABAR[s]) * (1 - ABAR[s] / ABAR[s_next]))
    z_hat = (x - np.sqrt(ABAR[s]) * x0) / np.sqrt(1 - ABAR[s])
    mean = np.sqrt(ABAR[s_next]) * x0 + np.sqrt(1 - ABAR[s_next] - sigma**2) * z_hat
    epsilon = (np.asarray(iterates[0], np.float64) - mean) / sigma
    assert np.std(epsilon) == pytest.approx(1, rel=0.02)

    draws = [split(degrade)[0] for degrade in (NOISE, compose(*[NOISE] * (T + 1)))]
    drawn = [jax.vmap(lambda key, draw=draw: draw(key, BIG[1:]))(keys) for draw in draws]
    for noise in jax.tree.leaves(drawn):
        assert abs(np.corrcoef(epsilon.ravel(), noise.ravel())[0, 1]) < 0.02  # 4.4 standard errors


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_iterates_begin_at_the_start_and_end_at_the_result(name, x0, keys):
    arguments = (wrong, NOISE, x0, x0, keys, np.array([10, 4, 0]))
    result, iterates = sample(SAMPLERS[name], *arguments, [10, 0])
    assert iterates.shape == (2, *SHAPE)
    assert np.array_equal(iterates[0], x0)
    assert np.array_equal(iterates[1], result)
    np.testing.assert_allclose(result, sample(SAMPLERS[name], *arguments), atol=1e-6)


@pytest.mark.parametrize("name", ["tacos_x0", "second_order", "momentum"])
def test_variants_of_tacos_are_their_formulas(name, x0, keys):
    """Walk by hand, over uneven times, with a restorer that is wrong in another way at each t."""
    times = [10, 6, 5, 1, 0]
    D = lambda x, s: jax.vmap(BLUR, (0, None, 0))(x, s, keys)  # noqa: E731
    x, last, average = x0, None, None
    for i, (s, s_next) in enumerate(itertools.pairwise(times)):
        x0_hat = wrong(x0, x, jnp.full(len(x0), s))
        used = x0_hat
        if name == "second_order" and i > 0:
            used = x0_hat + 0.5 * (s - s_next) / (times[i - 1] - s) * (x0_hat - last)
        if name == "momentum":
            average = used = x0_hat if i == 0 else 0.5 * average + 0.5 * x0_hat
        x, last = x - D(used, s) + D(used, s_next), x0_hat
        if name == "tacos_x0" and s_next == 0:
            x = x0_hat
    found = sample(SAMPLERS[name], wrong, BLUR, x0, x0, keys, np.array(times))
    np.testing.assert_allclose(found, x, atol=1e-5)
    different = sample(tacos, wrong, BLUR, x0, x0, keys, np.array(times))
    assert np.abs(found - different).max() > 1e-3


def test_an_image_does_not_depend_on_its_batch(x0):
    run = lambda x, keys: sample(tacos, wrong, add_e, x, x, keys, np.arange(T, -1, -1))  # noqa: E731
    together = run(x0, image_keys(jax.random.key(1), 7, 3))
    alone = run(x0[2:], image_keys(jax.random.key(1), 9, 1))
    np.testing.assert_allclose(together[2:], alone, atol=1e-6)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_each_image_may_have_its_own_times(name, x0, keys):
    """Compare each image with a walk of its own; an image at 0 stays as it is, to the bit."""
    sampler, times = SAMPLERS[name], times_of_each(np.array([7, 0, 2]), 4)
    together = sample(sampler, wrong, NOISE, x0, x0, keys, times)
    assert np.array_equal(together[1], x0[1])
    for i, own in ((0, [7, 5, 4, 2, 0]), (2, [2, 1, 0])):
        at = slice(i, i + 1)
        alone = sample(sampler, wrong, NOISE, x0[at], x0[at], keys[at], np.array(own))
        np.testing.assert_allclose(together[at], alone, atol=1e-5)


def test_times_of_each():
    expected = [[7, 0, 2, 4], [5, 0, 1, 3], [4, 0, 0, 2], [2, 0, 0, 1], [0, 0, 0, 0]]
    assert times_of_each(np.array([7, 0, 2, 4]), 4).tolist() == expected
    assert times_of_each(np.array([0, 0]), 4).tolist() == [[0, 0], [0, 0]]
    for wrong_times in ([[5, 5], [5, 0], [0, 0]], [[5, 5], [0, 2]], [[5, 0], [2, 1], [0, 0]]):
        with pytest.raises(UserError, match="decreasing to 0"):
            check_times(wrong_times)
    check_times(expected)
    with pytest.raises(UserError, match="iterates_at"):
        check_times(expected, [0])


def test_the_loop_compiles_once_for_all_times_of_one_length(x0, keys):
    traces = []

    @jax.jit
    def run(xT, times):
        traces.append(times)
        return sample(tacos, wrong, BLUR, x0, xT, keys, times)

    for times in ([10, 5, 0], [9, 1, 0], [3, 2, 0]):
        run(x0, jnp.array(times))
    assert len(traces) == 1


def test_times_between():
    assert times_between(10, 3).tolist() == [10, 7, 3, 0]  # the nearest integers
    assert times_between(5, 3).tolist() == [5, 3, 2, 0]
    assert times_between(10, 10).tolist() == list(range(10, -1, -1))
    assert times_between(10, 1).tolist() == [10, 0]
    for steps in range(1, 201):
        times = times_between(200, steps)
        check_times(times)
        assert len(times) == steps + 1 and times[0] == 200
    for steps in (0, 11):
        with pytest.raises(UserError, match=f"steps={steps} must lie in 1..T=10"):
            times_between(10, steps)


def test_one_program_serves_every_number_of_steps(x0, keys):
    """Compare with programs of their own, for padded times and a count of the steps."""
    D = draw_patterns(BLUR, keys, SHAPE[1:])
    xT = D(x0, jnp.int32(T))

    @jax.jit
    def run(times, count):
        return walk(naive, lambda x, s: 0.9 * x, D, xT, times, None, count)

    for times in ([10, 0], [10, 7, 3, 0], [10, 2, 1, 0]):
        padded = np.pad(times, (0, T + 1 - len(times)))
        expected = walk(naive, lambda x, s: 0.9 * x, D, xT, times)
        np.testing.assert_allclose(run(padded, len(times) - 1), expected, atol=1e-6)
    assert run._cache_size() == 1
    once = walk(direct, lambda x, s: 0.9 * x, D, xT, [10, 0])
    many = walk(direct, lambda x, s: 0.9 * x, D, xT, [10, 5, 0], None, jnp.int32(2))
    np.testing.assert_array_equal(many, once)  # direct takes one step, whatever the count


def test_times_by_change():
    """D that changes as t² has times at roots; where all changes, times are the even ones."""
    t = np.arange(101)
    squares = np.diff(t**2, prepend=0)
    assert times_by_change(squares, 4).tolist() == [100, 87, 71, 50, 0]  # 100 √(k/4)
    for steps in (1, 2, 7, 99, 100):
        even = times_between(100, steps)
        assert times_by_change(np.ones(101), steps).tolist() == even.tolist()
    sudden = np.zeros(11)
    sudden[4] = 1.0  # all of the change: both sides of it must be visited
    assert {3, 4} <= set(times_by_change(sudden, 3).tolist())
    rng = np.random.default_rng(0)
    for steps in range(1, 51):
        times = times_by_change(rng.uniform(size=51) ** 9, steps)
        check_times(times)
        assert len(times) == steps + 1 and times[0] == 50
    with pytest.raises(UserError, match=r"steps=11 must lie in 1\.\.T=10"):
        times_by_change(sudden, 11)


@pytest.mark.parametrize("times", [[5, 5, 0], [0, 5], [5, 1], [5], [5.0, 0.0], [[5, 0]]])
def test_wrong_times_are_refused(times, x0, keys):
    with pytest.raises(UserError, match="two or more integers decreasing to 0; got"):
        sample(tacos, oracle, BLUR, x0, x0, keys, np.array(times))


def test_iterates_at_other_times_are_refused(x0, keys):
    with pytest.raises(UserError, match=r"iterates_at=\[4\] must be some of the times"):
        sample(tacos, oracle, BLUR, x0, x0, keys, [10, 5, 0], [4])
