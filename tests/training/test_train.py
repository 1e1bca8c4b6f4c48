"""The train step against a plain one, and runs that stop, resume and are refused."""

import json
import math
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import call_main, tiny_config, tiny_generator_config
from jax.tree_util import Partial
from ml_collections import ConfigDict
from PIL import Image
from tensorboard_events import read_events

import colddiff
from colddiff.data.batches import batches
from colddiff.evaluation import evaluate
from colddiff.exchange.card import render
from colddiff.experiment import checkpoint
from colddiff.experiment.build import build, learning_rates
from colddiff.experiment.state import TrainState, init_state
from colddiff.images import to_uint8
from colddiff.runtime.devices import create_mesh
from colddiff.runtime.errors import UserError
from colddiff.sampling.samplers import image_keys
from colddiff.training.examples import check_data, make_example, train_batches
from colddiff.training.further import further_losses, make_further
from colddiff.training.loop import _divergence, train
from colddiff.training.step import make_train_step


def equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def some_images(*shape, channels=1):
    return np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)


def test_the_step_is_one_step_of_adam_on_the_mean_l1(config):
    """Compare two accumulated batches with one of twice the size, without the library's step."""
    config.train.accumulation = 2
    config.train.lr_schedule = "constant"
    config.train.ema_start = 0
    config.train.ema_decay = 0.9
    config.train.ema_decays = (0.5, 0.0)
    experiment, mesh = build(config), create_mesh()
    state = init_state(experiment, mesh)
    before = jax.device_get(state)
    images = some_images(2, 8, 16, 16)
    found, metrics = make_train_step(experiment, mesh)(state, images, experiment.degrade)

    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))
    example = jax.vmap(make_example(experiment, experiment.degrade))
    x0, xt, t = example(images.reshape(16, 16, 16, 1), image_keys(key, 0, 16))

    @jax.jit
    def plain(params):
        def loss(params):
            return jnp.mean(jnp.abs(experiment.restore(params, xt, t) - x0))

        value, grads = jax.value_and_grad(loss)(params)
        adam = optax.adam(config.train.learning_rate)
        updates, _ = adam.update(grads, adam.init(params))
        return value, grads, optax.apply_updates(params, updates)

    loss, grads, params = plain(before.params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-4)

    def close(a, b, grad):
        clear = np.abs(grad) > 1e-5  # Adam's first step is the gradient's sign
        assert np.mean(clear) > 0.5 or np.max(np.abs(grad)) < 1e-5
        np.testing.assert_allclose(np.where(clear, a, 0), np.where(clear, b, 0), atol=2e-5)

    jax.tree.map(close, found.params, params, grads)
    average = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, before.params, params)
    jax.tree.map(close, found.ema_params, average, grads)
    average = jax.tree.map(lambda a, b: 0.5 * (a + b), before.params, params)
    jax.tree.map(close, found.more_ema["0.5"], average, grads)
    jax.tree.map(np.testing.assert_array_equal, found.more_ema["0"], found.params)
    assert int(found.step) == 1


def test_the_learning_rate_follows_its_schedule(config):
    """Use a gradient of 1, for which a step of Adam is the learning rate."""
    config.train.num_steps = 8
    cosine = (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    for config.train.lr_schedule, shares in (("constant", np.ones(8)), ("cosine", cosine)):
        optimizer, updates = build(config).optimizer, []
        state = optimizer.init(jnp.zeros(()))
        for _ in range(8):
            update, state = optimizer.update(jnp.ones(()), state)
            updates.append(-float(update))
        np.testing.assert_allclose(updates, config.train.learning_rate * shares, rtol=1e-3)


def test_the_learning_rate_warms_up(config):
    config.train.update({"num_steps": 8, "lr_schedule": "constant", "warmup_steps": 4})
    rates = [float(learning_rates(config.train)(step)) for step in range(8)]
    shares = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(rates, np.array(shares) * config.train.learning_rate, rtol=1e-6)


def test_clipping_and_weight_decay_follow_their_formulas(config):
    """Take two steps of AdamW by hand, in float64, with gradients of norms 5 and 0.1."""
    config.train.update({"lr_schedule": "constant", "clip_norm": 1.0, "weight_decay": 0.1})
    rate, p, m, v = config.train.learning_rate, np.array([2.0, -1.0]), 0.0, 0.0
    optimizer = build(config).optimizer
    params = jnp.asarray(p, jnp.float32)
    state = optimizer.init(params)
    for step, g in enumerate((np.array([3.0, 4.0]), np.array([0.06, 0.08])), 1):
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        g = g / max(1, np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        moved = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        p = p - rate * (moved + 0.1 * p)
        np.testing.assert_allclose(params, p, rtol=1e-6)


@pytest.mark.parametrize("through", [False, True])
def test_further_terms_follow_their_formulas(through, config):
    """Compare loss and gradient of a step with the formulas, written out for one batch."""
    experiment, key = build(config), jax.random.key(3)
    T = experiment.T
    x0, x0_hat_noise = jax.random.uniform(key, (2, 3, 16, 16, 1), minval=-1)
    keys, t = image_keys(key, 0, 3), jnp.array([1, 4, T])
    config.train.unfold.update({"weight": 0.5, "through": through})
    config.train.degraded_loss = 0.25
    patterns = jax.vmap(lambda key: jax.random.split(key, 4)[3])(keys)
    xt = jax.vmap(experiment.degrade)(x0, t, patterns)
    further = make_further(experiment, experiment.degrade, keys, (x0, xt, t))
    s = further.s
    assert s[0] == 0 and np.all(s < t) and np.all(s[1:] > 0)

    def restore(w, x, t):  # a restorer with one weight
        return w * x + 0.1 * t[:, None, None, None] / T

    def terms(w):
        x0_hat = restore(w, xt, t) + 0.1 * x0_hat_noise
        return further_losses(config, lambda x, t, _: restore(w, x, t), further, x0_hat, key)

    def by_hand(w):
        x0_hat = restore(w, xt, t) + 0.1 * x0_hat_noise
        total = 0.0
        for i in range(3):
            one = lambda x, s, i=i: experiment.degrade(x, s, patterns[i])  # noqa: E731
            seen = x0_hat[i] if through else jax.lax.stop_gradient(x0_hat[i])
            iterate = xt[i] - one(seen, t[i]) + one(seen, s[i])
            if i > 0:  # t = 1 has no severity below it
                total += 0.5 * jnp.abs(restore(w, iterate[None], s[i][None])[0] - x0[i]).mean()
            total += 0.25 * jnp.abs(one(x0_hat[i], s[i]) - one(x0[i], s[i])).mean()
        return total / 3

    both = (jax.jit(jax.value_and_grad(f))(0.7) for f in (terms, by_hand))
    for found, expected in zip(*both, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_step_with_further_terms(config):
    """Check that the loss grows by the terms, and that FSDP takes them too."""
    losses = {}
    for weight, fsdp in ((0.0, 1), (0.5, 1), (0.5, 4)):
        config.train.unfold.weight = weight
        mesh = create_mesh(fsdp)
        experiment = build(config)
        images = np.full((1, 8, 16, 16, 1), 200, np.uint8)
        state = init_state(experiment, mesh)
        _, metrics = make_train_step(experiment, mesh)(state, images, experiment.degrade)
        losses[weight, fsdp] = float(metrics["loss"])
    assert losses[0.5, 1] > losses[0.0, 1]
    np.testing.assert_allclose(losses[0.5, 4], losses[0.5, 1], rtol=1e-5)


def test_time_that_is_over_stops_and_the_next_start_resumes(config, tmp_path, caplog):
    config.train.num_steps = 3
    with caplog.at_level("INFO"):
        assert not train(config, tmp_path, stop_after=0.0)
    assert "stopped at step 1; run the same command again" in caplog.text
    with checkpoint.open_manager(tmp_path) as manager:
        assert manager.all_steps() == [1]
    assert train(config, tmp_path, stop_after=3600.0)
    with checkpoint.open_manager(tmp_path) as manager:
        assert manager.latest_step() == 3


def test_no_two_draws_of_training_share_a_key(config, monkeypatch):
    """Record the keys of all draws, in two steps with each of two seeds.

    Each image draws its corner, mirroring, severity and pattern; each batch draws its dropout.
    """
    config.data.update({"crop_margin": 2, "flip": True})
    config.train.update({"batch_size": 4, "accumulation": 2})
    keys = []

    def note(key):
        jax.debug.callback(
            lambda words: keys.append(tuple(words.tolist())), jax.random.key_data(key)
        )

    def noting(draw):
        return lambda key, *args, **settings: (note(key), draw(key, *args, **settings))[1]

    class Model:
        def init(self, key, images, t):
            return {"params": {"scale": jnp.ones(())}}

        def apply(self, variables, xt, t, train, rngs):
            note(rngs["dropout"])
            return variables["params"]["scale"] * xt

    degrade = Partial(lambda x0, t, key: (note(key), x0)[1])
    experiment, mesh = build(config)._replace(model=Model(), degrade=degrade), create_mesh()
    images = some_images(2, 4, 18, 18)
    for name in ("randint", "bernoulli"):
        monkeypatch.setattr(jax.random, name, noting(getattr(jax.random, name)))
    for config.seed in (1, 2):
        step, state = make_train_step(experiment, mesh), init_state(experiment, mesh)
        for _ in range(2):
            state, _ = step(state, images, degrade)
    jax.effects_barrier()
    assert len(keys) == 2 * 2 * (2 * 4 * 4 + 2)  # seeds × steps × (images × 4 + batches)
    assert len(set(keys)) == len(keys)


def test_the_seed_decides_the_order_of_the_images(config):
    images = np.arange(40, dtype=np.uint8)[:, None, None, None]
    orders = []
    for config.seed in (1, 2):
        found = np.stack(list(train_batches(config, create_mesh(), images, start=0, stop=5)))
        expected = list(batches(images, 8, seed=config.seed, start=0, stop=5))
        assert np.array_equal(found, expected)
        orders.append(found.ravel().tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40)) and orders[0] != orders[1]


class DropoutAlone(nn.Module):
    """A restorer that compiles fast: a 1×1 convolution, then dropout."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, xt, t, train=False):
        return nn.Dropout(self.rate, deterministic=not train)(nn.Dense(xt.shape[-1])(xt))


def test_every_step_draws_anew_and_dropout_acts(config):
    """Compare the losses of two steps with two seeds, without the library's step.

    Patterns and dropout each have their own key, which depends on the seed and the step.
    """
    config.train.learning_rate = 0.0
    config.train.accumulation = 2
    images = some_images(2, 8, 16, 16)
    experiment, mesh = build(config)._replace(model=DropoutAlone()), create_mesh()

    @jax.jit
    def plain(params, seed, step):
        """Return losses with dropout of its own key, of the patterns' key, and without dropout."""
        step_key = jax.random.fold_in(jax.random.key(seed), step)
        pattern_key, dropout_key = jax.random.split(step_key)
        example = jax.vmap(make_example(experiment, experiment.degrade))
        x0, xt, t = example(images.reshape(16, 16, 16, 1), image_keys(pattern_key, 0, 16))

        def l1(some, key, train):
            rngs = {"dropout": key}
            apply = experiment.model.apply
            x0_hat = apply({"params": params}, xt[some], t[some], train=train, rngs=rngs)
            return jnp.mean(jnp.abs(x0_hat - x0[some]))

        def loss(key, train=True):
            first = l1(slice(0, 8), jax.random.fold_in(key, 0), train)
            return (first + l1(slice(8, 16), jax.random.fold_in(key, 1), train)) / 2

        return loss(dropout_key), loss(pattern_key), loss(dropout_key, train=False)

    losses, expected = [], []
    for seed in (0, 3):
        config.seed = seed
        state = init_state(experiment, mesh)
        params = jax.device_get(state.params)
        train_step = make_train_step(experiment, mesh)
        for step in range(2):
            state, metrics = train_step(state, images, experiment.degrade)
            losses.append(float(metrics["loss"]))
            expected.append([float(loss) for loss in plain(params, seed, step)])
    expected = np.array(expected)
    np.testing.assert_allclose(losses, expected[:, 0], rtol=1e-5)
    apart = np.abs(expected.reshape(-1, 1) - expected.reshape(1, -1)) + np.eye(12)
    assert apart.min() > 1e-4  # ten times the tolerance above


def test_examples_are_crops_and_mirrors_at_every_severity(config):
    config.data.flip = True
    experiment = build(config)
    image = some_images(18, 18)[..., :1]
    keys = image_keys(jax.random.key(0), 0, 300)
    x0, xt, t = jax.vmap(make_example(experiment, experiment.degrade), (None, 0))(image, keys)
    exact = image / 127.5 - 1
    crops = {
        (i, j, flip): exact[i : i + 16, j : j + 16][:, :: -1 if flip else 1]
        for i in range(3)
        for j in range(3)
        for flip in (False, True)
    }
    found = [[k for k, crop in crops.items() if np.allclose(x, crop, atol=1e-6)] for x in x0]
    assert all(len(match) == 1 for match in found)
    assert {match[0] for match in found} == set(crops)
    assert set(t.tolist()) == set(range(1, experiment.T + 1))
    expected = jax.vmap(experiment.degrade)(x0, t, keys)  # blur needs no key
    np.testing.assert_allclose(xt, expected, atol=1e-5)


def test_examples_may_be_padded_or_cropped_at_the_centre(config):
    keys = image_keys(jax.random.key(0), 0, 200)
    image = some_images(16, 16)
    config.data.pad = 2
    x0, _, _ = jax.vmap(make_example(build(config), build(config).degrade), (None, 0))(image, keys)
    black = np.pad(image / 127.5 - 1, ((2, 2), (2, 2), (0, 0)), constant_values=-1)
    crops = [black[i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    found = [[k for k, crop in enumerate(crops) if np.allclose(x, crop, atol=1e-6)] for x in x0]
    assert {match[0] for match in found} == set(range(25)) and all(len(m) == 1 for m in found)

    config.data.update({"pad": 0, "crop_margin": 3, "crop": "center"})
    image = some_images(19, 19)
    x0, _, _ = jax.vmap(make_example(build(config), build(config).degrade), (None, 0))(image, keys)
    np.testing.assert_allclose(x0, np.stack([image[2:18, 2:18] / 127.5 - 1] * 200), atol=1e-6)


def test_the_network_is_shown_8_bits_if_the_config_says_so(config):
    keys = image_keys(jax.random.key(0), 0, 20)
    for eight_bit in (True, False):
        config.data.eight_bit = eight_bit
        experiment = build(config)
        example = jax.vmap(make_example(experiment, experiment.degrade), (None, 0))
        x0, xt, t = example(some_images(16, 16), keys)
        levels = (np.asarray(xt, np.float64) + 1) * 127.5
        whole = np.abs(levels - np.round(levels)).max() < 1e-3
        assert whole == eight_bit
        difference = jax.vmap(experiment.degrade)(x0, t, keys) - xt  # blur needs no key
        assert difference.min() > -1e-4 and difference.max() < 1 / 127.5


def test_a_stopped_run_goes_on_bit_identically(trained, tmp_path):
    """Stop at the checkpoint of step 3, and resume to step 8."""
    partial = tiny_config()
    partial.train.num_steps = 3
    partial.train.lr_schedule = "constant"  # cosine depends on num_steps
    whole = tiny_config()
    whole.train.lr_schedule = "constant"
    train(whole, tmp_path / "whole")
    train(partial, tmp_path / "parts")
    with checkpoint.open_manager(tmp_path / "parts") as manager:
        assert manager.all_steps() == [3]
    train(whole, tmp_path / "parts")
    states = []
    for name in ("whole", "parts"):
        with checkpoint.open_manager(tmp_path / name) as manager:
            assert manager.all_steps() == [3, 6, 8]
            like = init_state(build(whole), create_mesh())
            states.append(checkpoint.restore_state(manager, like, 8))
    assert equal(*states)
    assert not equal(states[0].params, states[0].ema_params)


def test_a_finished_run_is_left_alone(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file()}
    train(tiny_config(), copy)
    assert before == {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file()}


def test_another_run_s_workdir_is_refused_and_untouched(trained):
    config = tiny_config()
    config.model.width = 16
    config.degradation.std = 2.0
    config.seed = 1
    with pytest.raises(UserError) as error:
        train(config, trained)
    message = str(error.value)
    for line in (
        "model.width: 8 saved, 16 now",
        "degradation.std: 1.0 saved, 2.0",
        "seed: 0 saved",
    ):
        assert line in message
    assert colddiff.load(trained).step == 8


def test_what_a_degradation_is_made_of_may_have_moved(config, tmp_path):
    """Check what may change: FILE.py's folder always, a bank's images only for loading."""
    function = "def f(*, num_steps):\n    return lambda x0, t, key: x0 * (1 - t / num_steps)\n"
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(function)
    bank = {"source": "digits", "split": "test", "limit": 5, "sharded": False}

    def moved(old, new, fields):
        configs = []
        for changes in (old, new):
            with config.unlocked():
                config.degradation = {"name": "animorph", "num_steps": 6, "bank": bank} | changes
            configs.append(ConfigDict(config))
        checkpoint.check_same(fields, *configs, tmp_path)

    places = [{"name": f"{tmp_path}/{folder}/mine.py:f"} for folder in ("here", "there")]
    moved(*places, checkpoint.SAME_MODEL)
    other_images = {"source": "color_digits", "split": "train", "limit": 6}
    moved({}, {"bank": bank | other_images}, checkpoint.SAME_MODEL)
    moved({}, {"bank": bank | {"sharded": True}}, checkpoint.SAME_RUN)
    of_parts = lambda *parts: {"name": "compose", "parts": parts}  # noqa: E731
    noise = {"name": "gaussian_noise"}
    banks = [{"name": "animorph", "bank": bank}, {"name": "animorph", "bank": bank | other_images}]
    moved(*places, checkpoint.SAME_RUN)
    moved(of_parts(noise, places[0]), of_parts(noise, places[1]), checkpoint.SAME_RUN)
    with pytest.raises(UserError, match=r"degradation\.parts\.1\.bank\.limit: "):
        moved(of_parts(noise, banks[0]), of_parts(noise, banks[1]), checkpoint.SAME_RUN)
    for old, new in (places, banks):
        moved(of_parts(noise, old), of_parts(noise, new), checkpoint.SAME_MODEL)
        moved(of_parts(of_parts(old)), of_parts(of_parts(new)), checkpoint.SAME_MODEL)
        with pytest.raises(UserError, match=r"degradation\.parts\.0\.name: 'gaussian_noise' saved"):
            moved(of_parts(noise, old), of_parts(old, old), checkpoint.SAME_MODEL)
    with pytest.raises(UserError, match="holds a run with another config"):
        moved({}, {"bank": bank | {"source": "color_digits"}}, checkpoint.SAME_RUN)
    other = {"name": places[1]["name"].replace(":f", ":g")}
    for fields in (checkpoint.SAME_MODEL, checkpoint.SAME_RUN):
        with pytest.raises(UserError, match="holds a run with another config"):
            moved(places[0], other, fields)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"batch_size": 16}, r"batch_size × train.accumulation: 8 saved, 16 now"),
        ({"accumulation": 2}, "train.accumulation: 8 saved, 16 now"),
        ({"ema_decay": 0.9}, "train.ema_decay: 0.95 saved, 0.9 now"),
        ({"ema_every": 2}, "train.ema_every"),
        ({"ema_start": 3}, "train.ema_start"),
        ({"optimizer": "sgd"}, "train.optimizer: 'adam' saved"),
        ({"batch_size": 4, "accumulation": 2}, None),
        ({"learning_rate": 1e-4, "num_steps": 99, "log_every": 1}, None),
    ],
    ids=str,
)
def test_what_may_change_when_a_run_goes_on(config, tmp_path, changes, refused, caplog):
    """Check that a change is either refused, or logged for each field."""
    saved = config.copy_and_resolve_references()
    config.train.update(changes)
    if refused:
        with pytest.raises(UserError, match=refused):
            checkpoint.check_same(checkpoint.SAME_RUN, saved, config, tmp_path)
        return
    checkpoint.check_same(checkpoint.SAME_RUN, saved, config, tmp_path)
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    for field in changes:
        assert any(f"differs from the saved one in train.{field}: " in text for text in said)


def test_what_the_images_and_the_model_are_may_not_change(config, tmp_path):
    """Check that a loaded run may have other images, but not another shape or 8-bit setting."""
    model = {"data.channels": 3, "data.image_size": 32, "data.eight_bit": True, "model.width": 16}
    images = {
        "data.source": "color_digits",
        "data.flip": True,
        "data.pad": 1,
        "data.crop": "center",
    }
    for field, value in (model | images).items():
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: value})
        for fields in (checkpoint.SAME_MODEL, checkpoint.SAME_RUN):
            if fields == checkpoint.SAME_MODEL and field in images:
                checkpoint.check_same(fields, config, other, tmp_path)
                continue
            with pytest.raises(UserError, match=rf"\n  {field}: \S+ saved, \S+ now"):
                checkpoint.check_same(fields, config, other, tmp_path)


def test_another_image_among_a_few_is_noticed(config, tmp_path):
    images = some_images(5, 16, 16)
    check_data(config, images, tmp_path)
    check_data(config, images.copy(), tmp_path)
    for i in range(5):
        others = images.copy()
        others[i, 3, 7] ^= 1
        with pytest.raises(UserError, match="are not those that"):
            check_data(config, others, tmp_path)


def test_one_batch_of_two_is_the_same_step_as_two_of_one(config):
    """Check the images, patterns and gradient, because this change is allowed on resume."""
    found, images = [], some_images(8, 16, 16)
    for accumulation in (1, 2):
        config.train.accumulation, config.train.batch_size = accumulation, 8 // accumulation
        experiment, mesh = build(config)._replace(model=DropoutAlone(rate=0.0)), create_mesh()
        parts = images.reshape(accumulation, -1, 16, 16, 1)
        step = make_train_step(experiment, mesh)
        _, metrics = step(init_state(experiment, mesh), parts, experiment.degrade)
        found.append([float(metrics[name]) for name in ("loss", "grad_norm")])
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_a_config_of_an_earlier_version_goes_on(config, tmp_path):
    """Remove data.background from the saved config; black is its default."""
    saved = config.copy_and_resolve_references()
    with saved.unlocked():
        del saved.data.background
    checkpoint.check_same(checkpoint.SAME_RUN, saved, config, tmp_path)
    config.data.background = (255, 0, 0)
    with pytest.raises(UserError, match=r"data.background: \[0, 0, 0\] saved, \[255, 0, 0\] now"):
        checkpoint.check_same(checkpoint.SAME_RUN, saved, config, tmp_path)


def test_train_step_and_sampler_compile_once(tmp_path, compiled):
    """Include pictures, checkpoints, a partial last batch of evaluation, and two samples."""
    config = tiny_config()
    config.train.sample_every = 2
    train(config, tmp_path)
    trained_step = compiled.count("train_step")
    run = colddiff.load(tmp_path)
    before = compiled.count("run_sampler")
    for seed in range(3):
        run.sample(run.params, jnp.zeros((5, 16, 16, 1)), jax.random.key(seed))
    sampled = compiled.count("run_sampler") - before
    evaluate.evaluate(run)
    assert trained_step == 1
    assert sampled == 1
    assert before == 2  # direct and tacos of the pictures
    assert compiled.count("_score_batch") == 4  # Degraded, direct, naive, tacos


def test_what_training_leaves_to_look_at(tmp_path):
    config = tiny_generator_config()
    config.train.sample_every = 4
    train(config, tmp_path)
    events = read_events(tmp_path / "tensorboard")
    for tag in ("train/loss", "train/grad_norm", "train/param_norm", "train/waiting_for_data"):
        assert {s for s, t in events if t == tag} == {2, 3, 4, 6, 8}  # 3: a checkpoint
    for name in ("samples", "generated"):
        assert {s for s, tag in events if tag == name} == {4, 8}
        pictures = sorted((tmp_path / name).iterdir())
        assert [p.name for p in pictures] == ["0000004.png", "0000008.png"]
        assert np.asarray(Image.open(pictures[0])).std() > 10
    run = colddiff.load(tmp_path)
    x0 = to_uint8(run.generate(run.params, range(8)))  # at most 3², because of eval.batch_size
    shown = np.asarray(Image.open(pictures[1]))
    assert shown.shape == (3 * 66 + 2, 3 * 66 + 2, 3)
    corners = shown[2::66, 2::66, 0][:3, :3].astype(int).ravel()
    assert np.abs(corners[:8] - x0[:, 0, 0, 0]).max() <= 1


@pytest.mark.parametrize("best", ["tacos/rmse", pytest.param("tacos/ssim", marks=pytest.mark.slow)])
def test_checkpoints_are_scored_and_the_best_one_is_kept(best, tmp_path, monkeypatch):
    """Use invented scores that fall after step 4; at the end, resume from step 4."""
    config = tiny_config()
    config.train.checkpoint_every = 2
    config.train.checkpoints_kept = 1
    config.train.scored = 5
    config.train.best = best
    (tmp_path / "evolution.json").write_text('{"num_images": 5, "scores": {"1": {}}}')  # old scores

    def made_up(run, *, truth, counts, resamples, between):
        step, params = run.step, run.params
        assert len(truth.images) == 5 and truth.spaces[0][1].count == 297
        assert counts == () and resamples == 0
        off = abs(step - 4)
        row = evaluate.Row("tacos", 6, [6, 0], 0.2 + off, 1.0, 0.9 - off, 0.0, [])
        seen.append((step, params))
        rows = [row._replace(name="degraded"), row]
        return evaluate.Report("digits", "test", 5, 297, "blur", 6, "EMA", step, rows, {})

    seen = []
    monkeypatch.setattr(evaluate, "evaluate", made_up)
    for num_steps in (6, 8):
        config.train.num_steps = num_steps
        train(config, tmp_path)
    with checkpoint.open_manager(tmp_path) as manager:
        assert manager.all_steps() == [4, 8]
    assert colddiff.load(tmp_path, step="best").step == 4
    last = colddiff.load(tmp_path)
    assert last.step == 8 and [step for step, _ in seen] == [2, 4, 6, 8]
    assert equal(seen[-1][1], last.params)  # the averaged parameters

    evolution = json.loads((tmp_path / "evolution.json").read_text())
    assert evolution["num_images"] == 5
    found = {step: scores["tacos/rmse"] for step, scores in evolution["scores"].items()}
    assert found == {"2": 2.2, "4": 0.2, "6": 2.2, "8": 4.2}
    tags = {(step, tag) for step, tag in read_events(tmp_path / "tensorboard")}
    assert {(step, "test/tacos/rmse") for step in (2, 4, 6, 8)} <= tags
    assert (tmp_path / "evolution" / "rmse.png").exists()

    shutil.rmtree(tmp_path / "checkpoints" / "8")
    config.train.num_steps = 5
    config.train.best = "direct/rmse"  # the checkpoint of step 4 has no such score
    train(config, tmp_path)
    evolution = json.loads((tmp_path / "evolution.json").read_text())
    assert list(evolution["scores"]) == ["2", "4", "5"]
    with pytest.raises(UserError, match=r"no checkpoint .* has the score direct/rmse; give a step"):
        colddiff.load(tmp_path, step="best")


def test_the_best_checkpoint_has_the_highest_ssim_or_psnr_or_the_lowest_error(config, tmp_path):
    """Make step 2 of 1, 2 and 3 the best, neither the first nor the last."""
    with checkpoint.open_manager(tmp_path, keep=3, best="tacos/rmse") as manager:
        for step, off in ((1, 0.3), (2, 0.1), (3, 0.2)):
            scores = {"tacos/rmse": off, "tacos/fd/pca": 9 * off, "tacos/kd/pca": off - 0.2}
            scores |= {"tacos/psnr": -20 * np.log10(off), "tacos/ssim": 1 - off}
            arrays = {"w": jnp.full(2, off)}
            state = TrainState(jnp.int32(step), arrays, arrays, arrays)
            checkpoint.save(manager, state, config, scores)
    for score in scores:
        with checkpoint.open_manager(tmp_path, best=score) as manager:
            assert (score, manager.best_step()) == (score, 2)


@pytest.mark.parametrize(
    ("scored", "best", "message"),
    [
        (0, "tacos/rmse", "needs scores, but config.train.scored is 0; set it"),
        (
            5,
            "tacos/fid",
            "must be SAMPLER/SCORE, .*tacos.* of rmse, psnr, ssim, fd/pca, kd/pca",
        ),
        (5, "ddim/rmse", "must be SAMPLER/SCORE"),
        (1, "tacos/rmse", "=1 images .* too few .*best='tacos/rmse' .*; FD needs 2 images"),
        (3, "tacos/kd/pca", "KD 4"),
    ],
)
def test_a_best_score_must_be_measured(scored, best, message, tmp_path):
    config = tiny_config()
    config.train.scored, config.train.best = scored, best
    with pytest.raises(UserError, match=message):
        train(config, tmp_path)


def test_further_averages_are_saved_and_loaded(config, tmp_path):
    """Check that training resumes with them, and that `load` returns the one that is asked for."""
    config.train.ema_decays = (0.0, 0.5)
    config.train.ema_start = 0
    config.train.num_steps = 2
    train(config, tmp_path)
    config.train.num_steps = 4
    train(config, tmp_path)
    with checkpoint.open_manager(tmp_path) as manager:
        state = checkpoint.restore_last(tmp_path, init_state(build(config), create_mesh()))
        assert manager.latest_step() == 4
    for ema, expected in ((None, state.ema_params), (0.5, state.more_ema["0.5"])):
        assert equal(colddiff.load(tmp_path, ema=ema).params, expected)
    assert equal(colddiff.load(tmp_path, ema=0.0).params, state.params)
    assert not equal(state.more_ema["0.5"], state.params)
    with pytest.raises(UserError, match=r"of the decays .* \(the default\), 0, 0\.5; not 0\.9"):
        colddiff.load(tmp_path, ema=0.9)
    flags = ("--mode=evaluate", f"--workdir={tmp_path}", "--samplers=direct")
    assert "--ema=0.9 must be train.ema_decay" in call_main(*flags, "--ema=0.9").stderr
    done = call_main(*flags, "--ema=0.5")
    assert done.returncode == 0 and "weights EMA 0.5 of step 4" in done.stdout, done.stderr
    folder = tmp_path / "evaluation" / "0000004"
    assert {p.name for p in folder.iterdir()} == {
        f"report-direct-ema-0.5.{kind}" for kind in ("md", "json", "html")
    } | {"samples-ema-0.5.png", "restoration-ema-0.5.gif"}
    card = render(colddiff.load(tmp_path, ema=0.5), "a", None)
    assert "EMA of 0.5 every" in card and "EMA of 0.95 every" not in card
    config.train.ema_decays = (0.5, 0.5)
    with pytest.raises(UserError, match=r"ema_decays=\(0\.5, 0\.5\) must be different numbers"):
        build(config)


def test_a_best_step_must_be_known(trained):
    with pytest.raises(UserError, match=r"trained without config\.train\.best, .*; give a step"):
        colddiff.load(trained, step="best")


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    config = tiny_config()
    config.train.learning_rate = 1e30
    config.train.checkpoint_every = 1
    with pytest.raises(UserError, match=r"diverged at step 1: .*(nan|inf).* Try a lower") as error:
        train(config, tmp_path)
    assert "checkpoint" not in str(error.value)
    with pytest.raises(UserError, match="holds no checkpoint"):
        colddiff.load(tmp_path)


def test_a_divergence_says_what_is_known():
    """At step 1, the loss and the gradient do not depend on the learning rate yet."""
    bad, good = {"loss": math.nan, "grad_norm": math.nan}, {"loss": 0.5, "grad_norm": 1.0}
    first = _divergence(1, bad | {"param_norm": math.nan}, Path("1.npz"), None)
    assert "loss nan, " in first and "images are in 1.npz. The network is still" in first
    assert "learning_rate" not in first and "checkpoint" not in first
    for step, metrics, saved in ((1, good, None), (7, bad, 6)):
        message = _divergence(step, metrics | {"param_norm": math.inf}, Path("1.npz"), saved)
        assert "Try a lower config.train.learning_rate" in message
        assert ("checkpoint of step 6" in message) == (saved == 6)


def test_as_many_checkpoints_as_wanted_are_kept(tmp_path):
    config = tiny_config()
    config.train.checkpoint_every = 1
    config.train.checkpoints_kept = 2
    train(config, tmp_path)
    with checkpoint.open_manager(tmp_path) as manager:
        assert manager.all_steps() == [7, 8]


def test_the_seed_decides_the_parameters(config):
    first = init_state(build(config), create_mesh()).params
    config.seed = 1
    assert not equal(first, init_state(build(config), create_mesh()).params)
