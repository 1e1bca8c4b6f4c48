"""Sources, splits, labels, unreadable files, and the order of training."""

import collections
import colorsys
import errno
import io
import itertools
import os
import struct
import types
import zlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from colddiff.data import sources
from colddiff.data.batches import batches
from colddiff.runtime import files
from colddiff.runtime.errors import UserError


def write_images(folder, names, size=(20, 10), mode="RGB"):
    """Write images; the red or gray level of each is its index."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, (i, 0, 255) if mode == "RGB" else i).save(folder / name)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_digits_are_the_real_ones_and_the_splits_do_not_meet():
    train = sources.load("digits", "train", size=8, channels=1)
    test = sources.load("digits", "test", size=8, channels=1)
    assert train.shape == (1500, 8, 8, 1) and test.shape == (297, 8, 8, 1)
    originals = load_digits().images[1500:] / 16
    assert np.corrcoef((test[..., 0] / 255).ravel(), originals.ravel())[0, 1] > 0.95


def test_color_digits_have_the_hue_of_their_label():
    """Check that there are ten hues, and the same shapes as in gray."""
    for split, labels in (("train", load_digits().target), ("test", load_digits().target[1500:])):
        gray = sources.load("digits", split, size=16, channels=1, limit=200)
        color = sources.load("color_digits", split, size=16, channels=3, limit=200)
        assert np.corrcoef(color.max(axis=-1).ravel(), gray.ravel())[0, 1] > 0.999
        inks = color.reshape(200, -1, 3).max(axis=1) / 255.0
        hues = [colorsys.rgb_to_hsv(*ink)[0] for ink in inks]
        distance = np.abs(np.array(hues) - labels[:200] / 10)
        assert np.minimum(distance, 1 - distance).max() < 0.02
        assert np.ptp(inks, axis=1).min() > 0.5


@pytest.mark.parametrize(
    ("first", "name"),
    [
        ("train", "test"),
        ("train", "val"),  # AFHQ's
        ("train", "valid"),
        ("train", "validation"),
        ("Train", "Test"),
        ("training", "testing"),
    ],
)
def test_folders_with_splits_of_their_own(tmp_path, first, name):
    names = [f"{first}/1.png", f"{first}/dog/2.png", f"{name}/3.png", f"{name}/4.png"]
    write_images(tmp_path, names)
    train, test = (
        sources.load(f"folder:{tmp_path}", s, size=4, channels=3) for s in sources.SPLITS
    )
    assert train[:, 0, 0, 0].tolist() == [0, 1] and test[:, 0, 0, 0].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("names", "seen"),
    [
        (["train/1.png", "holdout/2.png"], "holdout, train"),
        (["train/1.png", "dog/2.png", "cat/3.png"], "cat, dog, train"),
        (["test/1.png", "dog/2.png"], "dog, test"),
    ],
)
def test_a_split_beside_folders_that_are_none_is_refused(tmp_path, names, seen):
    write_images(tmp_path, names)
    for split in sources.SPLITS:
        with pytest.raises(UserError, match=f"among its folders {seen}. Rename the t"):
            sources.load(f"folder:{tmp_path}", split, size=4, channels=3)
    below = tmp_path / names[0].split("/")[0]
    write_images(below, ["a/1.png", "a/2.png"])
    alone = [sources.load(f"folder:{below}", s, size=4, channels=3) for s in sources.SPLITS]
    assert sum(map(len, alone)) == 3


def test_linked_folders_are_read_once_and_loops_end(tmp_path, caplog):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    write_images(elsewhere, ["far/1.png", "far/2.png"])
    write_images(root, ["near/0.png"])
    (root / "linked").symlink_to(elsewhere, target_is_directory=True)
    (root / "near" / "loop").symlink_to(root, target_is_directory=True)
    (root / "near" / "up").symlink_to(tmp_path, target_is_directory=True)
    (root / "twin").symlink_to(root / "near", target_is_directory=True)
    (elsewhere / "again").symlink_to(elsewhere, target_is_directory=True)
    found = [sources.load(f"folder:{root}", s, size=4, channels=3) for s in sources.SPLITS]
    assert sorted(np.concatenate(found)[:, 0, 0, 0].tolist()) == [0, 0, 1]
    said = "\n".join(warnings_of(caplog))
    for name in ("loop", "up", "twin", "again"):
        assert f"/{name}: " in said


def test_folder_is_resized_and_centre_cropped(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200  # the middle square
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide).save(tmp_path / "b.jpg", quality=100)
    images = np.concatenate(
        [sources.load(f"folder:{tmp_path}", s, size=5, channels=3) for s in ("train", "test")]
    )
    assert images.shape == (2, 5, 5, 3)
    assert np.abs(images[:, :, 1:-1].astype(int) - 200).max() <= 8  # JPEG; the edges are mixed


@pytest.mark.parametrize("shape", [(12, 12), (12, 20), (20, 12)])
@pytest.mark.parametrize("size", [4, 24])
def test_the_middle_square_is_resized_by_a_triangle_filter(tmp_path, shape, size):
    """Compare with NumPy on noise: the filter is two pixels of the coarser grid wide."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    Image.fromarray(pixels).save(tmp_path / "train" / "a.png")
    [found] = sources.load(f"folder:{tmp_path}", "train", size=size, channels=1)

    def weights(n):
        centres = n / 2 + 12 * ((np.arange(size)[:, None] + 0.5) / size - 0.5)
        distances = np.abs(np.arange(n) + 0.5 - centres)
        triangles = np.maximum(1 - distances / max(12 / size, 1), 0)
        return triangles / triangles.sum(axis=1, keepdims=True)

    high, wide = shape
    expected = weights(high) @ pixels @ weights(wide).T
    np.testing.assert_allclose(found[..., 0], expected, atol=1.1)  # PIL rounds after each axis


def test_folder_files_may_be_nested_and_of_any_mode(tmp_path):
    write_images(tmp_path, ["a/1.png", "a/b/2.JPG", "a/b/c/3.jpeg"])
    write_images(tmp_path, ["gray.png"], mode="L")
    write_images(tmp_path, ["palette.png"], mode="P")
    Image.fromarray(np.full((9, 9), 65535, np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "notes.txt").write_text("no image")
    for channels in (1, 3):
        splits = [
            sources.load(f"folder:{tmp_path}", s, size=4, channels=channels) for s in sources.SPLITS
        ]
        assert [len(s) for s in splits] == [5, 1]
        assert any(np.all(image == 255) for image in np.concatenate(splits))  # 16 bits scaled


def test_webp_and_tiff_are_read_unless_they_are_no_8_bit_picture(tmp_path, caplog):
    """Save a red half above a blue one in all kinds of file; some cannot be read as they are."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4], pixels[4:] = (200, 0, 0), (0, 0, 100)
    image, train = Image.fromarray(pixels), tmp_path / "train"
    write_images(tmp_path, ["test/a.png"])
    train.mkdir()
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(np.repeat([[0], [255]], 4, axis=0).repeat(8, 1).astype("uint8")))
    image.save(train / "a.WEBP", lossless=True)
    clear.save(train / "b.webp", lossless=True)
    image.save(train / "c.tif")
    image.save(train / "d.tiff", compression="tiff_lzw")
    image.quantize(4).save(train / "e.tif")
    clear.save(train / "f.tif")
    image.convert("L").save(train / "g.tif")
    plain = {"a": 200, "b": 0, "c": 200, "d": 200, "e": 200, "f": 0, "g": 60}  # the upper red

    image.save(train / "x_pages.tif", save_all=True, append_images=[image])
    image.save(train / "x_moving.webp", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    for mode, array in (("gray", pixels[..., 0]), ("rgb", pixels)):
        (train / f"x_16_bit_{mode}.tif").write_bytes(tiff_of_16_bits(array))
    for mode in ("1", "I", "F", "CMYK", "LAB"):
        image.convert("L" if mode in "1IF" else "RGB").convert(mode).save(train / f"x_{mode}.tif")
    found = sources.load(f"folder:{tmp_path}", "train", size=8, channels=3)
    assert found[:, 0, 0, 0].tolist() == list(plain.values())
    assert found[:-1, 7, 7].tolist() == [[0, 0, 100]] * 6
    said = "\n".join(warnings_of(caplog))
    for name in train.glob("x_*"):
        assert f"skipped the unreadable image {name} " in said
    for reason in ("2 pages or frames", "mode RGB with 16 bits a sample", "mode CMYK with 8 bits"):
        assert f"{reason}" in said
    assert said.count("skipped") == 9


def tiff_of_16_bits(pixels):
    """Return a TIFF file of 16 bits a sample, which PIL would cut to 8 bits if it is RGB."""
    high, wide, channels = (*pixels.shape, 1)[:3]
    data = (pixels.astype("<u2") * 257).tobytes()
    fields = {256: wide, 257: high, 259: 1, 262: 2 if channels == 3 else 1}
    fields |= {273: 0, 277: channels, 278: high, 279: len(data)}
    after = 8 + 2 + 12 * 9 + 4  # the samples' sizes, if there are three, then the pixels
    fields[273] = after + 6
    entries = [(tag, 4, 1, value) for tag, value in fields.items()]
    entries.append((258, 3, channels, after if channels == 3 else 16))
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    header = b"II*\0" + struct.pack("<IH", 8, 9) + directory + struct.pack("<I", 0)
    return header + struct.pack("<3H", 16, 16, 16) + data


def test_sizes_of_both_splits_and_files_passed_over_are_told_once(tmp_path, caplog):
    caplog.set_level("INFO")
    write_images(tmp_path, [f"{i:03d}.png" for i in range(60)])
    for name in ("a.gif", "b.GIF", "c/notes.txt", "LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    data = dict(source=f"folder:{tmp_path}", channels=3, train_split="train", test_split="test")
    sizes = [len(sources.load(data["source"], s, size=4, channels=3)) for s in sources.SPLITS]
    caplog.clear()
    sources.log_sizes(data)
    told, passed, small = (r.getMessage() for r in caplog.records)
    assert told == f"images of {data['source']}: {sizes[0]} for training, {sizes[1]} for testing"
    assert passed.endswith("passed over, by their ending: 2 .gif, 1 .txt, 1 without an ending")
    assert small.startswith(f"the test split has only {sizes[1]} images")
    caplog.clear()
    sources.log_sizes(data | {"source": "digits", "channels": 1})
    assert [r.getMessage() for r in caplog.records] == [
        "images of digits: 1500 for training, 297 for testing"
    ]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "d.gif").write_text("x")
    write_images(tmp_path, ["test/a.png"])
    with pytest.raises(UserError, match=r"no PNG, .* or TIFF file \(passed over: 1 \.gif\)"):
        sources.log_sizes(data)


def test_folder_turns_images_upright(tmp_path):
    image = Image.new("L", (8, 8))
    image.paste(255, (0, 0, 8, 4))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    for name in ("a.jpg", "b.jpg"):
        image.save(tmp_path / name, exif=exif)
    found = sources.load(f"folder:{tmp_path}", "train", size=8, channels=1)[0, ..., 0]
    assert found[:3].max() < 50 and found[5:].min() > 200


def test_folder_split_is_fixed_disjoint_and_complete(tmp_path):
    load = lambda split: sources.load(f"folder:{tmp_path}", split, size=4, channels=3)  # noqa: E731
    found = []
    for names in ([f"{i:03d}.png" for i in range(n)] for n in (2, 100, 200)):
        write_images(tmp_path, names)
        train, test = ({int(image[0, 0, 0]) for image in load(s)} for s in sources.SPLITS)
        assert train and test and not train & test and train | test == set(range(len(names)))
        found.append((train, test))
    assert found[1][0] < found[2][0] and found[1][1] < found[2][1]  # adding files moves none
    assert 10 <= len(found[2][1]) <= 30
    (tmp_path / "train").mkdir()
    write_images(tmp_path / "test", ["a.png"])
    with pytest.raises(UserError, match="train holds no PNG, JPEG, WebP or TIFF file"):
        load("train")
    assert len(load("test")) == 1


def test_neither_split_of_a_folder_is_ever_empty(tmp_path):
    """Use names that would all belong to one split."""
    names = [f"{i:03d}.png" for i in range(60)]
    write_images(tmp_path / "all", names)
    for i, split in enumerate(sources.SPLITS):
        members = sources.load(f"folder:{tmp_path}/all", split, size=4, channels=3)[:, 0, 0, 0]
        write_images(tmp_path / split, [names[k] for k in members])
        assert len(members) > 2
        counts = [
            len(sources.load(f"folder:{tmp_path}/{split}", s, size=4, channels=3))
            for s in sources.SPLITS
        ]
        assert counts[1 - i] == 1 and counts[i] == len(members) - 1


def test_the_fingerprint_of_a_folder_tells_sizes_and_names(tmp_path):
    write_images(tmp_path, ["train/a.png", "train/b.png", "test/c.png"])
    fingerprint = lambda: sources.fingerprint(f"folder:{tmp_path}", "train", 3)  # noqa: E731
    first, path = fingerprint(), tmp_path / "train" / "b.png"
    assert fingerprint() == first
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    assert fingerprint() != first
    path.write_bytes(whole)
    assert fingerprint() == first
    path.rename(path.with_name("d.png"))
    assert fingerprint() != first


@pytest.mark.parametrize("cache", [True, False])
def test_unreadable_files_are_skipped_named_and_counted(tmp_path, caplog, cache):
    write_images(tmp_path, [f"{i}.png" for i in range(20)])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    found = [
        sources.load(f"folder:{tmp_path}", s, size=4, channels=3, cache=cache)
        for s in sources.SPLITS
    ]
    images = [images[i] for images in found for i in range(len(images))]
    assert {int(image[0, 0, 0]) for image in images} == set(range(20))
    said = "\n".join(warnings_of(caplog))
    for name in ("empty.png", "text.jpg", "cut.png"):
        assert said.count(f"skipped the unreadable image {tmp_path}/{name}") == 1
    assert said.count("so far") == 3 and "(2 so far)" in said
    assert sum(map(len, found)) == (20 if cache else 23)


def png_of_zeros(width, height):
    """Return a gray PNG that is small as a file and large when decoded."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    packer = zlib.compressobj()
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_small_files_of_huge_images_are_not_decoded(tmp_path, caplog):
    write_images(tmp_path, ["train/a.png", "train/b.png", "test/a.png"])
    train = tmp_path / "train"
    (train / "bomb.png").write_bytes(png_of_zeros(8192, 8193))
    (train / "large.png").write_bytes(png_of_zeros(4096, 4096))
    Image.new("RGB", (8, 8)).save(train / "c.png", format="BMP")  # not the format of its name
    images = sources.load(f"folder:{tmp_path}", "train", size=4, channels=3)
    assert len(images) == 3  # a, b and large
    said = "\n".join(warnings_of(caplog))
    assert "bomb.png" in said and "8192 × 8193 pixels; at most 67108864" in said
    assert "c.png" in said and "large.png" not in said


def test_so_many_images_are_so_many_readable_ones(tmp_path):
    write_images(tmp_path / "test", [f"{i}.png" for i in range(1, 5)])
    (tmp_path / "train").mkdir()
    (tmp_path / "test" / "0.png").write_text("no image")
    load = lambda n: sources.load(f"folder:{tmp_path}", "test", size=4, channels=3, limit=n)  # noqa: E731
    assert load(4)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert [len(load(n)) for n in (1, 2, 3, 9)] == [1, 2, 3, 4]


@pytest.mark.parametrize("cache", [True, False])
def test_subsets_of_a_class_per_folder_hold_all_classes(tmp_path, cache):
    """Use three classes of 40 with their own levels; a subset contains the smaller ones."""
    for k, name in enumerate(("cat", "dog", "wild")):
        for i in range(40):
            write_images(tmp_path / "test" / name, [f"{i:02d}.png"], size=(4, 4))
            Image.new("RGB", (4, 4), (k, i, 0)).save(tmp_path / "test" / name / f"{i:02d}.png")
    (tmp_path / "train").mkdir()
    settings = dict(size=4, channels=3)
    whole = sources.load_split(f"folder:{tmp_path}", "test", **settings)
    assert whole.images[:, 0, 0, 0].tolist() == sorted([0, 1, 2] * 40)  # the order of the files
    assert sorted(whole.order) == list(range(120))
    for n in (8, 30, 60):
        images = sources.load(f"folder:{tmp_path}", "test", cache=cache, limit=n, **settings)
        pixels = [image[0, 0].tolist() for image in (images[i] for i in range(len(images)))]
        assert sorted(pixels) == sorted(whole.images[whole.order[:n], 0, 0].tolist())
        counts = collections.Counter(k for k, _, _ in pixels)
        assert len(counts) == 3 and max(counts.values()) <= 0.75 * n
        part = sources.load_split(f"folder:{tmp_path}", "test", limit=n, **settings)
        assert np.array_equal(part.images[part.order], whole.images[whole.order[:n]])


@pytest.mark.parametrize("sorted_by_class", [True, False])
def test_parts_of_a_split_share_no_image(sorted_by_class, tmp_path):
    """Check sizes, labels and that parts of a split sorted by class hold all classes."""
    source, count = "digits", 1500
    if sorted_by_class:
        source, count = f"arrays:{tmp_path / 'a.npz'}", 0
        values = np.repeat(np.arange(100, dtype=np.uint8), 3).reshape(-1, 1, 1, 1)
        images = np.broadcast_to(values, (300, 4, 4, 1))
        np.savez(tmp_path / "a.npz", images=images, labels=np.arange(300) // 100)
    form = dict(size=4, channels=1)
    whole, rest, part = (
        sources.load_split(source, split, **form)
        for split in ("train", "train[:-30]", "train[-30:]")
    )
    assert len(part.images) == 30 and len(rest.images) == len(whole.images) - 30
    assert not count or len(whole.images) == count
    together = np.concatenate([rest.images, part.images])
    assert sorted(map(bytes, together)) == sorted(map(bytes, whole.images))
    order = whole.order.tolist()
    for piece, places in ((rest, order[:-30]), (part, order[-30:])):
        assert np.array_equal(piece.images[piece.order], whole.images[places])
        assert np.array_equal(piece.labels[piece.order], whole.labels[places])
    assert not sorted_by_class or {*part.labels.tolist()} == {0, 1, 2}
    with pytest.raises(UserError, match=r"the split train\[9999:\] of .* has no image"):
        sources.load(source, "train[9999:]", **form)
    with pytest.raises(UserError, match=r"unknown split of .* 'train\[-:5\]'"):
        sources.load(source, "train[-:5]", **form)


def test_subsets_of_the_other_sources_are_the_first_images():
    whole = sources.load_split("digits", "test", size=8, channels=1)
    assert np.array_equal(whole.order, np.arange(297)) and len(whole.labels) == 297
    part = sources.load_split("digits", "test", size=8, channels=1, limit=9)
    assert np.array_equal(part.images, whole.images[:9])
    assert np.array_equal(part.labels, whole.labels[:9])


def test_the_disk_failing_is_not_an_unreadable_image(tmp_path, monkeypatch, caplog):
    """Check that reading is retried, and that no image is dropped."""
    write_images(tmp_path, ["train/a.png", "train/b.png", "test/c.png"])
    open_image, failures = Image.open, {"a.png": 2, "b.png": 1}

    def failing(path, **settings):
        if failures.get(path.name, 0) > 0:
            failures[path.name] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return open_image(path, **settings)

    monkeypatch.setattr(files, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(sources.Image, "open", failing)
    assert len(sources.load(f"folder:{tmp_path}", "train", size=4, channels=3)) == 2
    assert sum("trying again" in text for text in warnings_of(caplog)) == 3
    failures["a.png"] = 99
    with pytest.raises(UserError, match=r"a\.png cannot be read: .*Input/output error"):
        sources.load(f"folder:{tmp_path}", "train", size=4, channels=3)


def test_transparent_pixels_show_the_background(tmp_path):
    """Check that red behind transparent pixels is hidden, and half shown if half transparent."""
    pixels = np.zeros((6, 6, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[2:4, :, 3], pixels[4:, :, 3] = 128, 255
    gray = np.full((6, 6, 2), 200, np.uint8)
    gray[:3, :, 1], gray[3:, :, 1] = 0, 255
    palette = Image.fromarray(np.repeat([[0], [1]], 3, axis=0).repeat(6, axis=1).astype(np.uint8))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    folder = tmp_path / "train"
    folder.mkdir()
    (tmp_path / "test").mkdir()
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(gray).save(folder / "b.png")
    palette.save(folder / "c.png", transparency=0)
    for background in ((0, 0, 0), (0, 0, 255)):
        images = sources.load(
            f"folder:{tmp_path}", "train", size=6, channels=3, background=background
        )
        assert images[0, 0, 0].tolist() == list(background)
        half = [128, 0, 127 / 255 * background[2]]
        np.testing.assert_allclose(images[0, 2, 0], half, atol=1)
        assert images[0, 5, 0].tolist() == [255, 0, 0]
        assert images[1, 0, 0].tolist() == list(background)
        assert images[1, 5, 0].tolist() == [200, 200, 200]
        assert images[2, 0, 0].tolist() == list(background)
        assert images[2, 5, 0].tolist() == [0, 255, 0]
    white = (255, 255, 255)
    images = sources.load(f"folder:{tmp_path}", "train", size=6, channels=1, background=white)
    assert images[:, 0, 0, 0].tolist() == [255] * 3
    for wrong in ((0, 0), (0, 0, 256), (0.5, 0, 0)):
        with pytest.raises(UserError, match=r"data.background=.* must be \(R, G, B\)"):
            sources.load(f"folder:{tmp_path}", "train", size=6, channels=1, background=wrong)


def test_a_broken_exif_block_is_just_one_unreadable_image(tmp_path, monkeypatch):
    write_images(tmp_path, ["train/a.jpg", "train/b.jpg", "train/c.jpg", "test/d.jpg"])

    def broken(image):
        if image.filename.endswith("a.jpg"):
            raise struct.error("required argument is not an integer")
        return image

    monkeypatch.setattr(sources.ImageOps, "exif_transpose", broken)
    assert len(sources.load(f"folder:{tmp_path}", "train", size=4, channels=3)) == 2


@pytest.mark.parametrize("cache", [True, False])
def test_no_readable_file_is_an_error(tmp_path, cache):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(UserError, match=r"none of the 2 images can be read, the first is .*png"):
        sources.load(f"folder:{tmp_path}", "train", size=4, channels=3, cache=cache)[0]


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("folder:no/such/place", "train", "no folder no/such/place"),
        ("mnist", "train", "unknown data source 'mnist'; valid: arrays:PATH, color_digits, digits"),
        ("folder:", "train", "unknown data source"),
        ("digits", "valid", "unknown split of digits 'valid'; valid: test, train"),
        ("tfds:no_such_dataset", "train", "TFDS knows no dataset 'no_such_dataset'"),
        ("tfds:mnist:9.9.9", "train", "TFDS knows no dataset 'mnist:9.9.9'"),
    ],
)
def test_wrong_sources_are_refused(source, split, message):
    with pytest.raises(UserError, match=message):
        sources.load(source, split, size=8, channels=1)


def test_a_library_s_error_without_words_is_still_ours(monkeypatch):
    def silent(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr("tensorflow_datasets.builder", silent)
    with pytest.raises(
        UserError, match=r"knows no dataset 'x'.*\(AssertionError\); check the name"
    ):
        sources.load("tfds:x", "train", size=8, channels=1)


def test_an_unprepared_tfds_dataset_says_how_to_prepare_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"is not prepared at .*tfds build mnist --file_format"):
        sources.load("tfds:mnist", "train", size=8, channels=1)


def test_tfds(real_data):
    mnist = sources.load("tfds:mnist", "test", size=28, channels=1, limit=100)
    assert mnist.shape == (100, 28, 28, 1) and mnist.max() == 255 and mnist.min() == 0
    cifar = sources.load("tfds:cifar10", "train[:50]", size=32, channels=3)
    assert cifar.shape == (50, 32, 32, 3)
    with pytest.raises(UserError, match="unknown split of tfds:mnist 'valid'; valid: test, train"):
        sources.load("tfds:mnist", "valid", size=28, channels=1)


# Labels.


@pytest.mark.parametrize(("source", "channels"), [("digits", 1), ("color_digits", 3)])
def test_digits_have_their_labels(source, channels):
    for split, rows in (("train", slice(1500)), ("test", slice(1500, None))):
        expected = load_digits().target[rows]
        images, labels = sources.load_labelled(source, split, size=8, channels=channels)
        assert labels.dtype == np.int32 and np.array_equal(labels, expected)
        assert np.array_equal(images, sources.load(source, split, size=8, channels=channels))
    assert sources.load_labelled(source, "test", size=8, channels=channels, limit=3)[1].shape == (
        3,
    )


def test_tfds_labels_come_with_the_images_in_one_reading(real_data, monkeypatch):
    """Compare with the rows of TFDS; each row is read once."""
    tfds = pytest.importorskip("tensorflow_datasets")
    reads = collections.Counter()
    as_data_source = tfds.core.DatasetBuilder.as_data_source

    class Counting:
        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, i):
            reads[i] += 1
            return self.rows[i]

    for name, size, channels in (("mnist", 28, 1), ("cifar10", 32, 3)):
        builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
        expected = builder.as_data_source("train[1000:1600]")
        with monkeypatch.context() as patch:
            patch.setattr(
                tfds.core.DatasetBuilder,
                "as_data_source",
                lambda *args, **kwargs: Counting(as_data_source(*args, **kwargs)),
            )
            images, labels = sources.load_labelled(
                f"tfds:{name}", "train[1000:1600]", size=size, channels=channels
            )
        assert labels.dtype == np.int32 and len(labels) == len(images) == 600
        for i in (0, 1, 255, 256, 300, 599):
            row = expected[i]
            assert np.array_equal(images[i], row["image"]) and labels[i] == row["label"]
        assert set(reads.values()) == {1} and len(reads) == 600
        reads.clear()


def source_of(levels, labels):
    """Return a source of gray images of these levels; a level None cannot be read."""

    def open_(i):
        if levels[i] is None:
            raise OSError("damaged")
        return Image.new("L", (4, 4), levels[i])

    return lambda argument, split: sources.Records(list(map(str, levels)), open_, labels)


def test_labels_stay_with_their_images_where_some_are_unreadable(monkeypatch):
    levels = [None if i % 7 == 0 else i % 251 for i in range(600)]
    monkeypatch.setitem(sources.SOURCES, "digits", source_of(levels, lambda i: 1000 + levels[i]))
    for limit, count in ((0, 514), (300, 300)):
        images, labels = sources.load_labelled("digits", "train", size=4, channels=1, limit=limit)
        assert len(images) == len(labels) == count
        assert np.array_equal(labels, images[:, 0, 0, 0].astype(int) + 1000)


def test_sources_without_labels_are_refused(tmp_path, monkeypatch):
    write_images(tmp_path, ["a.png", "b.png"])
    with pytest.raises(UserError, match=r"no class labels.* feature space 'pca' or 'inception'"):
        sources.load_labelled(f"folder:{tmp_path}", "train", size=4, channels=1)
    monkeypatch.setitem(sources.SOURCES, "digits", source_of([1, 2, 3], [0, -1, -1].__getitem__))
    with pytest.raises(UserError, match=r"2 of the 3 images of digits, split test, have no class"):
        sources.load_labelled("digits", "test", size=4, channels=1)
    with pytest.raises(UserError, match="unknown data source 'mnist'"):
        sources.load_labelled("mnist", "test", size=4, channels=1)


@pytest.mark.parametrize("classes", [[], ["label"], ["coarse", "fine"]])
def test_a_tfds_dataset_has_labels_if_it_has_one_kind(classes, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    labels = {name: tfds.features.ClassLabel(num_classes=5) for name in classes}
    png = io.BytesIO()
    Image.new("L", (4, 4)).save(png, "png")
    row = {"image": png.getvalue()} | dict.fromkeys(classes, 4)
    builder = types.SimpleNamespace(
        info=types.SimpleNamespace(features={"image": tfds.features.Image()} | labels),
        data_path=tmp_path,
        as_data_source=lambda split, decoders: [row, row],
    )
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: builder)
    assert len(sources.load("tfds:x", "train", size=4, channels=1)) == 2
    if classes == ["label"]:
        assert sources.load_labelled("tfds:x", "train", size=4, channels=1)[1].tolist() == [4, 4]
    else:
        with pytest.raises(UserError, match=r"tfds:x has no class labels.*or several"):
            sources.load_labelled("tfds:x", "train", size=4, channels=1)


# The order.

NUMBERED = np.arange(10, dtype=np.uint8)[:, None, None, None]  # ten images of one pixel


def order(**changes):
    settings = dict(batch_size=4, seed=0, start=0, stop=5) | changes
    return [batch[..., 0, 0, 0] for batch in batches(NUMBERED, **settings)]


def test_every_epoch_has_every_image_once_in_another_order():
    seen = np.concatenate([b.ravel() for b in order()])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert not np.array_equal(seen[:10], seen[10:])
    assert not np.array_equal(seen, np.concatenate([b.ravel() for b in order(seed=1)]))


def test_the_position_is_the_step():
    whole = order(stop=20)
    for start in (1, 7, 13):
        assert np.array_equal(order(start=start, stop=20), whole[start:])
    assert np.array_equal(order(stop=20, threads=1), whole)


def test_accumulation_and_hosts_share_one_order():
    flat = np.concatenate([b.ravel() for b in order(batch_size=8)])
    accumulated = order(batch_size=4, accumulation=2)
    assert accumulated[0].shape == (2, 4)
    assert np.array_equal(np.concatenate([b.ravel() for b in accumulated]), flat)
    hosts = [order(batch_size=4, accumulation=2, rows=r) for r in (slice(0, 2), slice(2, 4))]
    joined = [np.concatenate(parts, axis=1) for parts in zip(*hosts, strict=True)]
    assert np.array_equal(joined, accumulated)


def test_shuffles_are_fair():
    places = collections.Counter(
        int(order(seed=seed, batch_size=10, stop=1)[0][0, 0]) for seed in range(60)
    )
    assert len(places) == 10 and max(places.values()) < 18
    assert len(list(itertools.islice(batches(NUMBERED, 4, seed=0, start=3, stop=3), 1))) == 0
