"""Wrong versions of the code, each with the test that catches it.

    python -m tests.mutants              # all of them, about ten minutes on two cores
    python -m tests.mutants samplers.py  # those whose file or test has this word

Each mutant is one edit in a copy of this checkout. First, all tests named here must pass in the
copy. Then each edit alone must make its test fail.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
_FAILED = 1  # pytest's exit code for failed tests


class Mutant(NamedTuple):
    """An edit of colddiff/FILE: `old`, which the file contains once, becomes `new`."""

    file: str
    old: str
    new: str
    test: str


_PIL = "Image.Resampling.BILINEAR"
MUTANTS = (
    # The mathematics.
    Mutant(
        "sampling/samplers.py",
        "return x - D(x0_hat, s) + D(x0_hat, s_next)",
        "return D(x0_hat, s_next)",
        "sampling/test_samplers.py::test_each_sampler_is_its_algorithm",
    ),
    Mutant(
        "sampling/samplers.py",
        "    return x - D(x0_hat, s) + D(x0_hat, s_next)",
        "    return x - D(x0_hat, s_next) + D(x0_hat, s)",
        "sampling/test_samplers.py::test_a_perfect_restorer_gives_x0",
    ),
    Mutant(
        "sampling/samplers.py",
        "jax.random.fold_in(jax.random.fold_in(key, _EPSILON), s)",
        "jax.random.fold_in(key, s)",
        "sampling/test_samplers.py::test_epsilon_is_independent_of_what_a_degradation_draws",
    ),
    Mutant(
        "sampling/samplers.py",
        "rest = jnp.sqrt(jnp.maximum(b_next**2 - sigma**2, 0))",
        "rest = b_next",
        "sampling/test_samplers.py::test_the_whole_family_keeps_the_marginals",
    ),
    Mutant(
        "sampling/samplers.py",
        "return np.round(np.linspace(T, 0, steps + 1)).astype(np.int32)",
        "return np.linspace(T, 0, steps + 1).astype(np.int32)",
        "sampling/test_samplers.py::test_times_between",
    ),
    Mutant(
        "sampling/samplers.py",
        "return jnp.where(_per_image(s > s_next), moved, x) if s.ndim else moved",
        "return moved",
        "sampling/test_samplers.py::test_each_image_may_have_its_own_times",
    ),
    Mutant(
        "degradations/known_mask.py",
        "jnp.clip((share * (1 + _SOFT) - 1 + mask.depth) / _SOFT, 0, 1)",
        "share",
        "inference/test_restore.py::test_a_known_hole_shrinks_to_nothing",
    ),
    Mutant(
        "inference/sizes.py",
        "overlap = max(tile // 4, 3 * block if block > 1 else 0)",
        "overlap = 4",
        "inference/test_restore.py::test_tiles_are_as_the_whole",
    ),
    Mutant(
        "inference/sizes.py",
        "(np.linspace(0, length - tile, count) // unit * unit).astype(int)",
        "np.linspace(0, length - tile, count).astype(int)",
        "inference/test_restore.py::test_tiles_are_as_the_whole",
    ),
    Mutant(
        "inference/own_images.py",
        "images = np.where(kept[..., None] > 0, batch.images, color)",
        "images = batch.images",
        "inference/test_restore.py::test_a_mask_keeps_what_is_kept",
    ),
    Mutant(
        "inference/own_images.py",
        "    if np.abs(image).max() > 1:",
        "    if np.abs(image).max() > 10:",
        "inference/test_restore.py::test_wrong_images_and_severities_are_refused",
    ),
    Mutant(
        "inference/restore.py",
        'if entry is None or entry["sha256"] != picture.sha256:',
        "if entry is None:",
        "inference/test_restore.py::test_the_same_bytes_after_an_interruption",
    ),
    Mutant(
        "sampling/consistency.py",
        "return JT(J(d)) + penalty * d",
        "return JT(J(d)) - penalty * d",
        "sampling/test_consistency.py::test_the_noise_decides_how_far_it_goes",
    ),
    Mutant(
        "sampling/consistency.py",
        "return transposed(r)[0]",
        "return J(r)",
        "sampling/test_consistency.py::test_it_is_the_minimiser_and_agrees_with_the_measurement",
    ),
    Mutant(
        "sampling/consistency.py",
        "return jnp.where(is_x0, x0, x)",
        "return x",
        "sampling/test_consistency.py::test_x0_agrees_with_the_measurement_and_is_the_last_iterate",
    ),
    Mutant(
        "sampling/consistency.py",
        "M=lambda r: r / row_sums",
        "M=lambda r: r",
        "sampling/test_consistency.py::test_one_step_is_enough_for_a_mask",
    ),
    Mutant(
        "images.py",
        "jnp.where(changed, 0.5 / 127.5, 0.0)",
        "jnp.where(changed, 0.0, 0.0)",
        "sampling/test_consistency.py::test_truncation_to_8_bits_leaves_no_bias",
    ),
    Mutant(
        "sampling/priors.py",
        "jax.random.split(jax.random.fold_in(key, _OWN), 3)",
        "jax.random.split(key, 3)",
        "sampling/test_priors.py::test_what_a_prior_draws_is_independent_of_what_a_degradation_draws",
    ),
    Mutant(
        "degradations/separable.py",
        "    return jnp.where(t == 0, x0, xt)",
        "    return xt",
        "degradations/test_formulas.py::test_separable_maps_are_exact_at_zero_and_never_use_tf32",
    ),
    Mutant(
        "degradations/blur.py",
        "A.append(_blur_matrix(n, kernel, padding) @ A[-1])",
        "A.append(_blur_matrix(n, kernel, padding))",
        "degradations/test_formulas.py::test_blur_equals_sequential_convolutions",
    ),
    Mutant(
        "degradations/pixelate.py",
        "A.append(enlarge @ shrink(n, 2**t) @ A[-1])",
        "A.append(enlarge @ shrink(n, 2**t))",
        "degradations/test_formulas.py::test_pixelate_equals_sequential_steps",
    ),
    Mutant(
        "degradations/mask.py",
        "(n, (n - 1) // 2) if centred",
        "(n, n // 2 - 1) if centred",
        "degradations/test_formulas.py::test_the_hole_lies_where_it_is_said_to",
    ),
    Mutant(
        "degradations/mask.py",
        "for n in (size.height, size.width))",
        "for n in (size.width, size.height))",
        "degradations/test_formulas.py::test_the_hole_of_an_oblong_image_lies_where_it_is_said_to",
    ),
    Mutant(
        "degradations/snow.py",
        "(flakes + flakes[::-1, ::-1])",
        "(flakes + flakes[::-1])",
        "degradations/test_formulas.py::test_snow_equals_scipy",
    ),
    Mutant(
        "degradations/schedules.py",
        "alphas = [max(after / before, 1 - 0.999)",
        "alphas = [max(after / before, 1 - 0.99)",
        "degradations/test_formulas.py::test_noise_has_the_cosine_schedule",
    ),
    Mutant(
        "degradations/compose.py",
        "draw(jax.random.fold_in(key, i), shape) for i, draw",
        "draw(key, shape) for i, draw",
        "degradations/test_formulas.py::test_compose_applies_one_after_the_other",
    ),
    Mutant(
        "degradations/patterns.py",
        "    severities.check(t)\n",
        "",
        "degradations/test_formulas.py::test_arguments_that_cannot_be_meant_are_refused",
    ),
    Mutant(
        "images.py",
        "    if not largest <= LARGEST:",
        "    if largest > LARGEST:",  # lets NaN through
        "degradations/test_formulas.py::test_arguments_that_cannot_be_meant_are_refused",
    ),
    Mutant(
        "evaluation/metrics.py",
        "_C1, _C2 = 0.01**2, 0.03**2",
        "_C1, _C2 = 0.01, 0.03",
        "evaluation/test_metrics.py::test_ssim_agrees_with_scikit_image",
    ),
    Mutant(
        "networks/convnext_unet.py",
        "    norm: bool = True\n",
        "    norm: bool = False\n",
        "networks/test_networks.py::test_the_whole_network",
    ),
    # Training.
    Mutant(
        "training/examples.py",
        "jax.random.bernoulli(flip_key)",
        "jax.random.bernoulli(t_key)",
        "training/test_train.py::test_no_two_draws_of_training_share_a_key",
    ),
    Mutant(
        "training/examples.py",
        "jax.random.randint(t_key, (), smallest, experiment.T + 1)",
        "jax.random.randint(t_key, (), smallest, experiment.T)",
        "training/test_train.py::test_examples_are_crops_and_mirrors_at_every_severity",
    ),
    Mutant(
        "training/examples.py",
        "degrade(x0, t, pattern_key)",
        "degrade(x0, t, crop_key)",
        "training/test_train.py::test_no_two_draws_of_training_share_a_key",
    ),
    Mutant(
        "training/examples.py",
        "        seed=config.seed,\n",
        "        seed=0,\n",
        "training/test_train.py::test_the_seed_decides_the_order_of_the_images",
    ),
    Mutant(
        "training/examples.py",
        "_LOOKED_AT = 64",
        "_LOOKED_AT = 1",
        "training/test_train.py::test_another_image_among_a_few_is_noticed",
    ),
    Mutant(
        "training/step.py",
        "jax.random.fold_in(dropout_key, number)",
        "jax.random.fold_in(pattern_key, number)",
        "training/test_train.py::test_every_step_draws_anew_and_dropout_acts",
    ),
    Mutant(
        "training/step.py",
        "jax.random.fold_in(jax.random.key(config.seed), state.step)",
        "jax.random.key(config.seed)",
        "training/test_train.py::test_every_step_draws_anew_and_dropout_acts",
    ),
    Mutant(
        "training/step.py",
        "image_keys(pattern_key, number * batch_size, batch_size)",
        "image_keys(pattern_key, 0, batch_size)",
        "training/test_train.py::test_one_batch_of_two_is_the_same_step_as_two_of_one",
    ),
    Mutant(
        "experiment/build.py",
        "optax.cosine_decay_schedule(train.learning_rate, train.num_steps)",
        "optax.cosine_decay_schedule(train.learning_rate, 2 * train.num_steps)",
        "training/test_train.py::test_the_learning_rate_follows_its_schedule",
    ),
    Mutant(
        "experiment/state.py",
        "rate = jnp.where(step < train.ema_start, 1.0, rate)",
        "rate = jnp.where(step <= train.ema_start, 1.0, rate)",
        "experiment/test_state.py::test_ema_is_the_paper_s",
    ),
    # Files of a run.
    Mutant(
        "experiment/checkpoint.py",
        '"data.image_size", "data.channels", "data.eight_bit")',
        '"data.image_size", "data.channels")',
        "training/test_train.py::test_what_the_images_and_the_model_are_may_not_change",
    ),
    Mutant(
        "experiment/checkpoint.py",
        '    "seed",\n    "data",\n',
        '    "seed",\n',
        "training/test_train.py::test_what_the_images_and_the_model_are_may_not_change",
    ),
    Mutant(
        "experiment/checkpoint.py",
        '    _BATCH,\n    "train.optimizer",\n',
        '    "train.optimizer",\n',
        "training/test_train.py::test_what_may_change_when_a_run_goes_on",
    ),
    Mutant(
        "experiment/checkpoint.py",
        'score.endswith(("/ssim", "/psnr"))',
        'score.endswith("/ssim")',
        "training/test_train.py::test_the_best_checkpoint_has_the_highest_ssim_or_psnr_or_the_lowest_error",
    ),
    Mutant(
        "experiment/checkpoint.py",
        "        if damaged := [name for name, n in sums.items()",
        "        if damaged := [name for name, n in list(sums.items())[:0]",
        "training/test_faults.py::test_a_flipped_bit_is_damage",
    ),
    Mutant(
        "experiment/user_code.py",
        'if getattr(node, "name", "") != "get_config":',
        "if True:",
        "experiment/test_user_code.py::test_the_source_is_the_file_and_what_it_imports_from_beside",
    ),
    Mutant(
        "experiment/user_code.py",
        'return next(filter(None, reversed(places)), "")',
        'return next(filter(None, places), "")',  # the first of the user's lines
        "experiment/test_user_code.py::test_a_mistake_has_its_line_and_a_hint",
    ),
    Mutant(
        "experiment/checks.py",
        "_degraded(again.degrade, x0, times)",
        "_degraded(own.degrade, x0, times)",  # as if FILE.py was loaded once
        "experiment/test_user_code.py::test_a_mistake_has_its_line_and_a_hint",
    ),
    Mutant(
        "experiment/build.py",
        "    if name := first_own(",
        "    if name := {}.get(",
        "experiment/test_user_code.py::test_a_part_is_checked_with_what_the_parts_before_it_return",
    ),
    Mutant(
        "inference/prior.py",
        '            "images": read_json(workdir / "data.json"),\n',
        "",
        "training/test_faults.py::test_a_prior_of_other_images_is_fitted_anew",
    ),
    Mutant(
        "inference/prior.py",
        "size=size, components=components, seed=config.seed)",
        "size=size, components=components, seed=0)",
        "inference/test_inference.py::test_the_seed_decides_where_the_fit_of_the_prior_begins",
    ),
    Mutant(
        "inference/run.py",
        "    return chunk * count + remainders\n",
        "    return np.arange(len(seeds))\n",
        "inference/test_generate.py::test_a_seed_has_one_place_in_every_chunk",
    ),
    Mutant(
        "inference/outputs.py",
        '        "chunk": run.config.eval.chunk,\n',
        "",
        "inference/test_generate.py::test_images_of_another_mixture_or_chunk_are_never_mixed",
    ),
    # Data and scores.
    Mutant(
        "data/arrays.py",
        "(high - low) - 1",
        "(high - low + 1) - 1",
        "data/test_arrays.py::test_the_value_range_becomes_minus_one_to_one",
    ),
    Mutant(
        "training/examples.py",
        "else -1",
        "else 0",
        "test_sizes.py::test_examples_of_8_bits_and_of_floats_are_the_same",
    ),
    Mutant(
        "data/sources.py",
        "order=order,",
        "order=None,",
        "data/test_data.py::test_subsets_of_a_class_per_folder_hold_all_classes",
    ),
    Mutant(
        "data/folders.py",
        "os.walk(top, followlinks=True, onerror=refuse)",
        "os.walk(top, onerror=refuse)",
        "data/test_data.py::test_linked_folders_are_read_once_and_loops_end",
    ),
    Mutant(
        "images.py",
        "    if image.has_transparency_data:\n",
        "    if False:\n",
        "data/test_data.py::test_transparent_pixels_show_the_background",
    ),
    Mutant(
        "data/decoding.py",
        "            if file_system_failed(error):\n",
        "            if False:\n",
        "data/test_data.py::test_the_disk_failing_is_not_an_unreadable_image",
    ),
    Mutant(
        "data/folders.py",
        "- {last} | {first}",
        "| {first}",
        "data/test_data.py::test_neither_split_of_a_folder_is_ever_empty",
    ),
    Mutant(
        "images.py",
        _PIL,
        "Image.Resampling.BICUBIC",
        "data/test_data.py::test_the_middle_square_is_resized_by_a_triangle_filter",
    ),
    Mutant(
        "evaluation/evaluate.py",
        "image_keys(jax.random.key(config.seed), first, batch_size)",
        "image_keys(jax.random.key(config.seed), 0, batch_size)",
        "evaluation/test_evaluate.py::test_every_image_has_a_pattern_of_its_own_number",
    ),
    Mutant(
        "evaluation/evaluate.py",
        "np.concatenate(restored)[truth.order]",
        "np.concatenate(restored)",
        "evaluation/test_evaluate.py::test_subsets_of_a_class_per_folder_score_as_the_whole_does",
    ),
    Mutant(
        "evaluation/features.py",
        '        "pixels": hashlib.sha256(images).hexdigest(),\n',
        "",
        "evaluation/test_features.py::test_statistics_are_of_the_pixels_that_are_there",
    ),
    Mutant(
        "evaluation/features.py",
        "first.append(values[: KEPT - done])",
        "first.append(values)",
        "evaluation/test_features.py::test_only_the_first_features_are_kept",
    ),
    # Devices, hosts and files.
    Mutant(
        "runtime/devices.py",
        "sorted(jax.devices(), key=lambda d: (d.process_index, d.id))",
        "jax.devices()",
        "runtime/test_devices.py::test_a_host_s_devices_lie_together",
    ),
    Mutant(
        "runtime/files.py",
        "            os.fsync(file.fileno())\n",
        "",
        "runtime/test_files.py::test_a_file_is_on_the_disk_before_it_has_its_name",
    ),
    Mutant(
        "runtime/lock.py",
        '            return None, other or "another process"\n',
        '            return None, ""\n',
        "training/test_faults.py::test_a_workdir_is_one_process_s",
    ),
    # Weights in and out.
    Mutant(
        "experiment/authors.py",
        "= -np.sin(f), np.sin(f)",
        "= np.sin(f), -np.sin(f)",
        "exchange/test_importing.py::test_a_checkpoint_of_theirs",
    ),
    Mutant(
        "experiment/authors.py",
        "a.transpose(2, 3, 0, 1)[::-1, ::-1]",
        "a.transpose(2, 3, 0, 1)",
        "exchange/test_importing.py::test_a_checkpoint_of_theirs",
    ),
    Mutant(
        "experiment/authors.py",
        "for i in levels[:0:-1]]",
        "for i in levels[1:]]",
        "exchange/test_importing.py::test_a_checkpoint_of_theirs",
    ),
    Mutant(
        "experiment/weights.py",
        "return Weights(step, sets[0], sets[-1])",
        "return Weights(step, sets[-1], sets[-1])",
        "exchange/test_importing.py::test_a_checkpoint_of_theirs",
    ),
    Mutant(
        "experiment/weights.py",
        '"step": str(step)}',
        '"step": "0"}',
        "exchange/test_exporting.py::test_an_export_is_the_run",
    ),
    Mutant(
        "exchange/importing.py",
        "return _at_step(experiment.optimizer.init(params), weights.step)",
        "return experiment.optimizer.init(params)",
        "exchange/test_importing.py::test_training_goes_on",
    ),
    Mutant(
        "training/loop.py",
        "new = checkpoint.last_step(workdir, config) is None",
        "new = not checkpoint.last_step(workdir, config)",
        "exchange/test_importing.py::test_weights_of_our_own_names",
    ),
    Mutant(
        "exchange/program.py",
        "image_keys(jax.random.key(seed)",
        "image_keys(jax.random.key(0)",
        "exchange/test_exporting.py::test_random_programs_draw_from_the_seed",
    ),
    # Samplers with memory, further terms of the loss, and options of training.
    Mutant(
        "sampling/samplers.py",
        "share = jnp.where(last.h > 0, 0.5 * ratio, 0.0)",
        "share = jnp.where(last.h > 0, ratio, 0.0)",
        "sampling/test_samplers.py::test_variants_of_tacos_are_their_formulas",
    ),
    Mutant(
        "sampling/samplers.py",
        "average = jnp.where(_per_image(last.h > 0), average, x0_hat)",
        "average = average",
        "sampling/test_samplers.py::test_variants_of_tacos_are_their_formulas",
    ),
    Mutant(
        "sampling/samplers.py",
        "return jnp.where(_per_image(s_next == 0), x0_hat, moved)",
        "return moved",
        "sampling/test_samplers.py::test_variants_of_tacos_are_their_formulas",
    ),
    Mutant(
        "sampling/consistency.py",
        "    rule.init = init_of(sampler)\n",
        "",
        "sampling/test_consistency.py::test_a_perfect_restorer_still_gives_x0",
    ),
    Mutant(
        "training/further.py",
        "iterate = tacos(lambda x, t: estimate, D, xt, t, s)",
        "iterate = tacos(lambda x, t: estimate, D, xt, s, t)",
        "training/test_train.py::test_further_terms_follow_their_formulas",
    ),
    Mutant(
        "training/further.py",
        "jax.lax.stop_gradient(x0_hat)",
        "x0_hat",
        "training/test_train.py::test_further_terms_follow_their_formulas",
    ),
    Mutant(
        "experiment/build.py",
        "(step + 1) / train.warmup_steps",
        "step / train.warmup_steps",
        "training/test_train.py::test_the_learning_rate_warms_up",
    ),
    Mutant(
        "data/decoding.py",
        "chosen = sorted(order[positions])",
        "chosen = sorted(range(len(order))[positions])",
        "data/test_data.py::test_parts_of_a_split_share_no_image",
    ),
    Mutant(
        "sampling/samplers.py",
        "np.cumsum(np.maximum(change,",
        "np.cumsum(0 * change + np.maximum(1,",
        "sampling/test_samplers.py::test_times_by_change",
    ),
    Mutant(
        "sampling/samplers.py",
        "most if count is None else jnp.minimum(count, most)",
        "most",
        "sampling/test_samplers.py::test_one_program_serves_every_number_of_steps",
    ),
    Mutant(
        "inference/spacing.py",
        "            last = xt\n",
        "",
        "inference/test_spacing.py::test_the_change_of_a_known_degradation",
    ),
    Mutant(
        "evaluation/bootstrap.py",
        "centred = drawn - mean",
        "centred = drawn",
        "evaluation/test_bootstrap.py::test_replicates_are_scores_of_resampled_images",
    ),
    Mutant(
        "evaluation/bootstrap.py",
        "differences - differences.mean()",
        "differences",
        "evaluation/test_bootstrap.py::test_the_interval_of_a_difference_is_that_of_paired_images",
    ),
    Mutant(
        "reporting/report.py",
        "key=lambda row: row.steps, default=None",
        "key=lambda row: -row.steps, default=None",
        "reporting/test_report.py::test_differences_to_algorithm_2",
    ),
    Mutant(
        "experiment/state.py",
        "1 - decay, 0.0)",
        "1 - train.ema_decay, 0.0)",
        "training/test_train.py::test_the_step_is_one_step_of_adam_on_the_mean_l1",
    ),
    Mutant(
        "experiment/checkpoint.py",
        "params = _restore(manager, step, items)[name]\n",
        "params = _restore(manager, step, items)[name]\n    params = jax.tree.map(abs, params)\n",
        "training/test_train.py::test_further_averages_are_saved_and_loaded",
    ),
    Mutant(
        "networks/convolution.py",
        "_halved(y, _turned(kernel)), y)(x)[0]",
        "_halved(y, _turned(kernel)), y)(x[:, ::-1])[0]",
        "networks/test_convolution.py::test_transposed_values_and_gradients",
    ),
    Mutant(
        "networks/layers.py",
        "patch, W // patch, patch, C).swapaxes(2, 3)",
        "patch, W // patch, patch, C)",
        "networks/test_networks.py::test_patches_are_pixels_of_more_channels",
    ),
)


def main(words: Sequence[str]) -> int:
    """Print a line for each mutant; return how many of them no test caught."""
    chosen = [m for m in MUTANTS if not words or any(w in m.file + m.test for w in words)]
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in tracked.split("\0")[:-1]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
        if _pytest(copy, *dict.fromkeys(m.test for m in chosen)):
            print("not all tests pass without an edit")
            return len(chosen)
        survivors = 0
        for number, mutant in enumerate(chosen, 1):
            path = copy / "colddiff" / mutant.file
            source = path.read_text()
            if source.count(mutant.old) != 1:
                raise ValueError(f"{mutant.file} must have once: {mutant.old}")
            path.write_text(source.replace(mutant.old, mutant.new))
            caught = _pytest(copy, mutant.test) == _FAILED
            path.write_text(source)
            survivors += not caught
            verdict = "caught" if caught else "SURVIVED"
            print(f"{number}/{len(chosen)} {verdict}: {mutant.file}: {mutant.new.strip()!r}")
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return survivors


def _pytest(folder: Path, *tests: str) -> int:
    """Return pytest's exit code for tests of the checkout in `folder`."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", *(f"tests/{test}" for test in tests)]
    return subprocess.run(
        command, cwd=folder, env=cache | os.environ, capture_output=True, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
