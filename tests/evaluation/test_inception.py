"""FID's network against numbers of pytorch-fid, and against pytorch-fid if installed."""

import hashlib
import json
import logging
import math
import socket
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.tree_util import Partial
from pth_files import save_arrays

from colddiff.evaluation import inception
from colddiff.runtime.errors import UserError
from colddiff.runtime.pth import read_pth

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def random_state(kernels):
    """Return weights that keep activations in range, the same on every machine.

    Args:
      kernels: shapes `[H, W, in, out]`, or `[in, out]` of "fc", by layer.
    """

    def draw(name, *shape):
        random = np.random.RandomState(zlib.crc32(name.encode()))
        return random.standard_normal(shape).astype(np.float32)

    def he(name, *shape):
        return draw(name, *shape) * np.float32(math.sqrt(2 / math.prod(shape[1:])))

    state = {}
    for layer, (*size, inputs, outputs) in kernels.items():
        if layer == "fc":
            state["fc.weight"] = he("fc.weight", outputs, inputs)
            state["fc.bias"] = draw("fc.bias", outputs)
            continue
        state[f"{layer}.conv.weight"] = he(layer, outputs, inputs, *size)
        weight, bias, mean, var = (draw(f"{layer}.{k}", outputs) for k in BATCH_NORM)
        found = (1 + 0.2 * weight, 0.2 * bias, 0.2 * mean, np.exp(0.5 * var))
        state |= {f"{layer}.bn.{k}": v for k, v in zip(BATCH_NORM, found, strict=True)}
        state[f"{layer}.bn.num_batches_tracked"] = np.array(3)
    return state


def random_images(size, channels=3):
    """Return noise and a ramp."""
    random = np.random.RandomState(size)
    images = random.randint(0, 256, (2, size, size, channels)).astype(np.uint8)
    images[1] = np.linspace(0, 255, size).astype(np.uint8)[:, None, None]
    return images


@pytest.fixture(scope="module")
def state():
    """Return the state dict of the whole network."""
    return random_state(inception._kernel_shapes())


@pytest.fixture(scope="module")
def params(state):
    return jax.tree.map(jnp.asarray, inception.convert(state))


run = jax.jit(lambda extract, images: extract(images))


# Results of pytorch-fid 0.3.0 (PyTorch 2.13, float32) for these weights and images of 32²: every
# 128th feature, and every 84th logit of torchvision's classifier behind it.
# fmt: off
FEATURES = [
    [10.73874, 13.07137, 17.60078, 1.30748, 5.28732, 0.07895, 2.26150, 13.28669,
     31.51821, 0.21932, 6.90834, 5.93851, 0.23334, 0.30684, 0.16263, 0.00000],
    [8.55843, 9.62338, 13.11527, 0.88249, 3.18032, 0.05764, 1.49842, 8.07994,
     22.36891, 0.17743, 4.86403, 4.75932, 0.03230, 0.31405, 0.10150, 0.00000],
]
LOGITS = [
    [15.48286, 15.23155, -12.17254, -30.90949, -7.46183, 16.73427, -37.40921,
     7.47320, -31.78787, 0.42204, -25.41764, 32.11543],
    [11.24042, 10.56545, -9.06980, -21.94930, -4.82760, 12.25421, -25.87846,
     4.79448, -21.46713, 0.20873, -19.99438, 22.09617],
]
# fmt: on


def test_recorded_numbers(params):
    images = random_images(32)
    found = run(Partial(both, params), images)
    assert [(x.shape, x.dtype) for x in found] == [((2, 2048), "float32"), ((2, 1008), "float32")]
    for x, every, expected in zip(found, (128, 84), (FEATURES, LOGITS), strict=True):
        np.testing.assert_allclose(x[:, ::every], expected, rtol=0, atol=2e-5 * np.max(x))


def both(params, images):
    return inception.features(params, images), inception.logits(params, images)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 128, 299])
def test_agrees_with_pytorch_fid(state, tmp_path, monkeypatch, size):
    """Compare 2048 features, relative to the largest, for weights from a PyTorch file."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed")
    path = tmp_path / "weights.pth"
    torch.save({k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}, path)
    weights = torch.load(path, weights_only=True)
    params = inception.convert(read_pth(path))
    path.unlink()
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: weights)
    network = theirs.InceptionV3([3], resize_input=True, normalize_input=True).eval()
    for channels in (3, 1):
        images = random_images(size, channels)
        found = run(Partial(inception.features, params), images)
        shown = np.broadcast_to(images, (*images.shape[:3], 3)).transpose(0, 3, 1, 2)
        with torch.no_grad():
            expected = network(torch.from_numpy(shown / np.float32(255)))[0].numpy()[:, :, 0, 0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())


def test_gray_images_are_three_equal_channels():
    gray = random_images(40, 1)
    np.testing.assert_array_equal(
        inception._prepare(gray), inception._prepare(gray.repeat(3, axis=-1))
    )


@pytest.mark.parametrize(("high", "wide"), [(1, 3), (8, 32), (299, 5), (300, 700)])
def test_resize_against_its_definition(high, wide):
    """Compute each pixel from the four around its position; borders are repeated."""
    image = np.random.RandomState(0).randint(0, 256, (high, wide, 3)).astype(np.uint8)
    expected = np.empty((299, 299, 3))
    for i in range(299):
        y = max((i + 0.5) * high / 299 - 0.5, 0)
        top, bottom = int(y), min(int(y) + 1, high - 1)
        for j in range(299):
            x = max((j + 0.5) * wide / 299 - 0.5, 0)
            left, right = int(x), min(int(x) + 1, wide - 1)
            above = image[top, left] * (left + 1 - x) + image[top, right] * (x - left)
            below = image[bottom, left] * (left + 1 - x) + image[bottom, right] * (x - left)
            expected[i, j] = above * (top + 1 - y) + below * (y - top)
    found = inception._prepare(image[None])[0]
    np.testing.assert_allclose(found, expected / 127.5 - 1, atol=2e-6)


def test_average_pools_leave_the_padding_out():
    x = np.random.RandomState(0).standard_normal((2, 4, 5, 3)).astype(np.float32)
    expected = np.empty_like(x)
    for i in range(4):
        for j in range(5):
            part = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            expected[:, i, j] = part.mean(axis=(1, 2))
    np.testing.assert_allclose(inception._average_pool(jnp.asarray(x)), expected, atol=1e-6)


def test_images_of_other_kinds_are_refused():
    for images in (np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(UserError, match=r"takes uint8 images \[B, H, W, 1 or 3\]; got "):
            inception.features({}, jnp.asarray(images))
    with pytest.raises(UserError, match=r"got uint8 \(2, 8, 8, 4\)"):
        inception.logits({}, jnp.zeros((2, 8, 8, 4), jnp.uint8))


def test_the_published_file_is_known():
    """Check its name against its checksum, and its size against 472 tensors."""
    assert inception.FILE in inception.URL
    assert inception.FILE.endswith(f"-{inception.SHA256[:8]}.pth")
    assert json.loads(json.dumps(inception.IDENTITY)) == inception.IDENTITY
    weights = [v for v in random_state(inception._kernel_shapes()).values() if v.ndim]
    assert len(weights) == 94 * 5 + 2
    assert 4 * sum(v.size for v in weights) == 95_541_568  # 87 kB less than the file


def test_convert_knows_every_tensor(state):
    def refused(message, **changes):
        changed = {k: v for k, v in (state | changes).items() if v is not None}
        with pytest.raises(UserError, match=message):
            inception.convert(changed)

    name = "Mixed_6c.branch7x7dbl_4.conv.weight"
    assert state[name].shape == (160, 160, 7, 1)
    refused(f"{name} is missing", **{name: None})
    refused(r"fc.bias \(and 1 more\) is missing", **{"fc.bias": None, "fc.weight": None})
    refused(r"Mixed_8a.bn.bias is not known", **{"Mixed_8a.bn.bias": np.zeros(3, np.float32)})
    for wrong in (state[name].transpose(0, 1, 3, 2), state[name].astype(np.float64)):
        refused(rf"{name} is float.*, expected float32 \(160, 160, 7, 1\)", **{name: wrong})
    auxiliary = {"AuxLogits.fc.bias": np.zeros(1008, np.float32)}
    expected, found = (flatten_dict(inception.convert(s)) for s in (state, state | auxiliary))
    assert expected.keys() == found.keys()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Make a network of three layers, whose weights are published as a local file."""
    kernels = {"first": (3, 3, 3, 4), "Mixed.branch": (1, 1, 4, 2), "fc": (2, 5)}
    monkeypatch.setattr(inception, "_kernel_shapes", lambda: kernels)
    path = tmp_path / "published" / inception.FILE
    path.parent.mkdir()
    weights = random_state(kernels)
    save_arrays(path, weights)
    monkeypatch.setattr(inception, "URL", path.as_uri())
    monkeypatch.setattr(inception, "SIZE", path.stat().st_size)
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path, tmp_path / "cache", flatten_dict(inception.convert(weights))


def assert_same(params, expected):
    found = flatten_dict(params)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_load_downloads_and_converts_once(small, caplog):
    path, folder, expected = small
    with caplog.at_level(logging.INFO, logger="absl"):
        assert_same(inception.load(folder), expected)
    assert f"downloading {inception.URL}" in caplog.text
    assert (folder / inception.FILE).read_bytes() == path.read_bytes()
    path.unlink()
    (folder / inception.FILE).unlink()
    assert_same(inception.load(folder), expected)
    [converted] = folder.iterdir()
    assert converted.match("inception-2015-12-05-*.npz")


def test_load_takes_a_file_put_there(small, monkeypatch):
    path, folder, expected = small
    folder.mkdir()
    path.rename(folder / inception.FILE)
    assert_same(inception.load(folder), expected)


def test_without_a_network_it_says_what_to_put_where(small, monkeypatch):
    _, folder, _ = small
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}/{inception.FILE}"
        monkeypatch.setattr(inception, "URL", closed)
        with pytest.raises(UserError, match=r"cannot be downloaded: .*refused") as error:
            inception.load(folder)
        assert closed in str(error.value)
        assert f"put it at {folder / inception.FILE}" in str(error.value)
        taken.listen()  # accepts connections, and never answers
        monkeypatch.setattr(inception, "_TIMEOUT", 0.2)
        with pytest.raises(UserError, match=r"cannot be downloaded: .*timed out"):
            inception.load(folder)
    assert not [*folder.iterdir()]


@pytest.mark.parametrize(("change", "message"), [(-1, "sent .* bytes, not"), (1, "sent more than")])
def test_a_download_of_another_size_is_not_kept(small, change, message):
    path, folder, _ = small
    content = path.read_bytes()
    path.write_bytes(content[:-1] if change < 0 else content + b"\0")
    with pytest.raises(UserError, match=f"cannot be downloaded: .*{message}"):
        inception.load(folder)
    assert not [*folder.iterdir()]


def test_another_file_in_its_place_is_refused(small):
    path, folder, _ = small
    folder.mkdir()
    content = path.read_bytes()
    for wrong in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        (folder / inception.FILE).write_bytes(wrong)
        with pytest.raises(UserError, match=f"it has {len(wrong)} bytes and SHA-256 .*; delete it"):
            inception.load(folder)
    assert [p.name for p in folder.iterdir()] == [inception.FILE]


def test_changed_converted_weights_are_refused(small, monkeypatch):
    _, folder, _ = small
    inception.load(folder)
    [path] = folder.glob("*.npz")
    content = path.read_bytes()
    with np.load(path) as arrays:
        written = dict(arrays)

    def refused(message):
        with pytest.raises(
            UserError, match=rf"inception-2015-12-05-\w+\.npz {message}.*; delete it"
        ):
            inception.load(folder)

    kernel = written["first.kernel"]
    for changes in (
        {"first.kernel": np.nextafter(kernel, 9, dtype=np.float32)},
        {"first.kernel": kernel.reshape(-1)},
        {"first.more": kernel},
        {"digest": "0"},
    ):
        np.savez(path, **(written | changes))
        refused("is damaged: its arrays differ from those that were written")
    for wrong in (content[: len(content) // 2], b"", b"text"):
        path.write_bytes(wrong)
        refused("cannot be read")
    with path.open("wb") as file:
        np.save(file, kernel)
    refused("cannot be read")
    path.write_bytes(content)
    inception.load(folder)
    monkeypatch.setattr(inception, "SHA256", "0")
    with pytest.raises(UserError, match=r"SHA-256 .*; delete it"):
        inception.load(folder)
