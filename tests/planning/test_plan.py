"""Plans: FLOPs against counts by hand, traffic of known programs, state by device."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from conftest import TINY_FLAGS, call_main, tiny_config
from jax import lax

from colddiff.experiment.build import build
from colddiff.planning import plan
from colddiff.planning.chips import CHIPS, find_topology
from colddiff.planning.program import count_flops, read_traffic, size_of
from colddiff.runtime.errors import UserError
from configs import blur_cifar10


def flops(function, *shapes):
    return count_flops(jax.make_jaxpr(function)(*map(jnp.zeros, shapes)))


def test_flops_of_single_operations():
    def conv(x, k, **settings):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, k, dimension_numbers=layout, **settings)

    halved = lambda x, k: conv(x, k, window_strides=(2, 2), padding="SAME")  # noqa: E731
    assert flops(halved, (2, 8, 8, 3), (3, 3, 3, 5)) == 2 * (2 * 4 * 4 * 5) * (9 * 3)
    grouped = lambda x, k: conv(  # noqa: E731
        x, k, window_strides=(1, 1), padding="SAME", feature_group_count=4
    )
    assert flops(grouped, (1, 8, 8, 4), (7, 7, 1, 4)) == 2 * (8 * 8 * 4) * 49
    doubled = lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME")  # noqa: E731
    assert flops(doubled, (1, 4, 4, 3), (4, 4, 3, 5)) == 2 * (4 * 4 * 3) * (16 * 5)
    batched = lambda x, y: jnp.einsum("bij,bjk->bik", x, y)  # noqa: E731
    assert flops(batched, (2, 3, 5), (2, 5, 7)) == 2 * (2 * 3 * 7) * 5
    looped = lambda x: lax.fori_loop(0, 6, lambda i, x: x @ x, x)  # noqa: E731
    assert flops(jax.jit(looped), (4, 4)) == 6 * 2 * 4**3
    chosen = lambda x: lax.platform_dependent(  # noqa: E731
        x, cpu=lambda x: (x @ x) @ x, default=lambda x: x @ x
    )
    assert flops(chosen, (4, 4)) == 2 * 4**3


def test_flops_of_the_network_of_cifar10_by_hand():
    """Count the convolutions of blocks, halvings and doublings, and attention (DDPM)."""

    def block(side, inputs, outputs):
        shortcut = inputs * outputs if inputs != outputs else 0
        return 2 * side**2 * (9 * inputs * outputs + 9 * outputs**2 + shortcut)

    def attention(side, width):
        return 2 * side**2 * 4 * width**2 + 2 * 2 * side**4 * width

    total, skips = 2 * 32**2 * 9 * 3 * 128, [128]
    side, width = 32, 128
    for level, features in enumerate((128, 256, 256, 256)):
        for _ in range(2):
            total += block(side, width, features) + attention(side, features) * (side == 16)
            width = features
            skips.append(width)
        if level < 3:
            side //= 2
            total += 2 * side**2 * 9 * width**2
            skips.append(width)
    total += 2 * block(side, width, width) + attention(side, width)
    for level, features in reversed(list(enumerate((128, 256, 256, 256)))):
        for _ in range(3):
            inputs = width + skips.pop()
            total += block(side, inputs, features) + attention(side, features) * (side == 16)
            width = features
        if level > 0:
            side *= 2
            total += 2 * side**2 * 4 * width**2  # 4 of a 4×4 kernel's taps reach each pixel
    total += 2 * 32**2 * 9 * 128 * 3

    experiment = build(blur_cifar10.get_config())
    params = jax.eval_shape(
        lambda: experiment.model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))
    )
    images = jax.ShapeDtypeStruct((5, 32, 32, 3), jnp.float32)
    times = jax.ShapeDtypeStruct((5,), jnp.int32)
    restore = jax.make_jaxpr(experiment.restore)(params["params"], images, times)
    assert count_flops(restore) == pytest.approx(5 * total, rel=0.01)


def test_traffic_of_known_programs():
    assert size_of("f32[2,3]{1,0}") == 24 and size_of("(bf16[5]{0}, pred[], s32[])") == 15
    text = """HloModule m

other { %a = f32[99]{0} add(%b, %c) }

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %sum = f32[8]{0} fusion(%p, %p), kind=kLoop, calls=%other
  %start = (f32[8]{0}, f32[16]{0}) all-gather-start(%sum), channel_id=1
  %done = f32[16]{0} all-gather-done(%start)
  %part = f32[8]{0} bitcast(%done)
  ROOT %c = f32[8]{0} all-reduce(%part), to_apply=%other
}
"""
    found = read_traffic(text)
    assert found.collectives == {"all-gather": (1, 96), "all-reduce": (1, 32)}
    assert found.kernels == 3
    assert found.bytes == (32 + 32 + 32) + (96 + 32) + (32 + 32)
    product = jax.jit(lambda x, y: x @ y).lower(jnp.zeros((64, 32)), jnp.zeros((32, 16))).compile()
    found = read_traffic(product.as_text())
    assert found.bytes >= 4 * (64 * 32 + 32 * 16 + 64 * 16) and not found.collectives


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e", "must be CHIP:SHAPE, such as v5e:4x4"),
        ("k80:8", "the chips are v4, v5e, v5p, v6e, a100, h100, h200"),
        ("h100:2x4", r"must be CHIP:COUNT for GPUs, such as h100:8"),
    ],
)
def test_wrong_topologies_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        find_topology(text)


def test_a_plan_of_this_machine():
    """Check that FSDP divides the state, and that every batch has its own program."""
    config = tiny_config()
    whole = plan.plan(config, "here", (8, 16))
    assert [(p.name, p.images) for p in whole.programs] == [
        ("train step", 8),
        ("train step", 16),
        ("sampler", 8),
    ]
    assert whole.devices == 4 and whole.state["parameters"] == 4 * whole.parameters
    assert whole.state["averages"] == whole.state["parameters"]
    assert whole.state["moments"] == pytest.approx(2 * whole.state["parameters"], abs=64)
    few, many, _ = (p.flops for p in whole.programs)
    assert many == pytest.approx(2 * few, rel=0.05)
    assert all(p.memory > 0 and p.flops_seconds is None for p in whole.programs)
    assert whole.programs[0].traffic.collectives["all-reduce"][1] >= 4 * whole.parameters
    config.mesh.fsdp = 4
    shared = plan.plan(config, "here")
    assert whole.state["moments"] / 4 <= shared.state["moments"] < 0.5 * whole.state["moments"]
    assert "all-gather" in shared.programs[0].traffic.collectives
    with pytest.raises(UserError, match=r"batches \[6\] cannot be split evenly over 4 devices"):
        plan.plan(config, "here", (6,))


def test_bounds_are_peaks(tmp_path):
    config = tiny_config()
    found = plan.plan(config, "here")
    chip = CHIPS["v5e"]
    rows = [p._replace(flops_seconds=1e-4, bytes_seconds=1e-3) for p in found.programs]
    text = plan.markdown(found._replace(topology="v5e:2x2", chip=chip, programs=rows))
    assert "v5e:2x2: 4 × TPU v5e" in text and "| yes |" in text
    assert "| 0.1 ms | 1 ms | 8,000 | 2.22e-06 |" in text  # 8 images, 8 steps of a millisecond
    large = [p._replace(memory=16 * 2**30) for p in rows]
    text = plan.markdown(found._replace(topology="v5e:2x2", chip=chip, programs=large))
    assert "| 16,384 MiB | no |" in text


def test_the_command(tmp_path):
    flags = (*TINY_FLAGS, f"--workdir={tmp_path}", "--mode=plan")
    done = call_main(*flags, "--topology=here", "--batches=8,12")
    assert done.returncode == 0 and "here: 4 × here, jax" in done.stdout, done.stderr
    saved = json.loads((tmp_path / "plan-here.json").read_text())
    assert [p["images"] for p in saved["programs"]] == [8, 12, 64]
    assert (tmp_path / "plan-here.md").read_text() in done.stdout
    assert "--mode=plan needs --topology=CHIP:SHAPE" in call_main(*flags).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "topology"), [("libtpu", "v5e:2x2"), ("jax_plugins.xla_cuda12", "h100:2")]
)
def test_other_hardware(package, topology):
    name = package.partition(".")[0]
    if importlib.util.find_spec(name) is None or importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    config = tiny_config()
    config.eval.batch_size = 4
    found = plan.plan(config, topology)
    chip = CHIPS[topology.partition(":")[0]]
    step = found.programs[0]
    assert found.chip == chip and found.devices in (2, 4)
    assert 0 < step.memory < chip.memory and step.traffic.collectives
    assert step.flops_seconds == step.flops / chip.float32 / found.devices
    assert step.bytes_seconds > 0 and found.programs[-1].bytes_seconds is None
