"""Comparison of folders with the data: measures with known answers."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from colddiff.data import sources
from colddiff.evaluation import metrics
from colddiff.evaluation.compare import compare, markdown, parse_folders, write
from colddiff.runtime.errors import UserError


def write_images(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
            folder / f"{i:06d}.png"
        )
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(folder / "grid.png")  # not a generated image
    return folder


@pytest.fixture
def train(config):
    return sources.load("digits", "train", size=16, channels=1)


def test_measures_of_known_sets(config, train, tmp_path):
    shifted = (train[:600] // 2 + 100).astype(np.uint8)  # brighter, less contrast
    same = np.repeat(train[:1], 5, axis=0)
    folders = {
        "copies": write_images(tmp_path / "a", train),
        "gray": write_images(tmp_path / "b", shifted),
        "one": write_images(tmp_path / "c", same),
    }
    report = compare(config, folders)
    rows = {row.title: row for row in report.rows}
    assert list(rows) == ["data, train split", "data, test split", "copies", "gray", "one"]
    assert rows["copies"][1:] == rows["data, train split"][1:]
    gaps = {title: row.gaps[0] for title, row in rows.items()}
    assert gaps["copies"].features == "pca-32 of digits 16²×1"
    assert gaps["copies"].train == pytest.approx(0, abs=1e-6)
    assert gaps["copies"].test == pytest.approx(gaps["data, test split"].train)
    assert 0.3 < gaps["copies"].test < 2  # other digits of the same data set
    test = sources.load("digits", "test", size=16, channels=1)
    pca = PCA(32).fit(train.reshape(1500, -1) / 255)
    features = [
        metrics.moments(pca.transform(x.reshape(len(x), -1) / 255)).gaussian
        for x in (test, shifted)
    ]
    expected = metrics.frechet_distance(*features)
    assert gaps["gray"].test == pytest.approx(expected, rel=1e-3)
    assert gaps["gray"].train > 5 and gaps["one"].train > 5
    assert [rows[t].num_images for t in ("copies", "gray", "one")] == [1500, 600, 5]
    assert rows["one"].pairwise == pytest.approx(0, abs=1e-6)
    first = train[:512].reshape(512, -1) / 255
    distances = [np.sqrt(np.mean((first[i] - first[i + 1 :]) ** 2, axis=1)) for i in range(511)]
    assert rows["copies"].pairwise == pytest.approx(np.concatenate(distances).mean(), rel=1e-6)

    assert write(report, tmp_path / "out") == tmp_path / "out"
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["title"] for row in written["rows"]] == list(rows)
    assert (tmp_path / "out" / "comparison.md").read_text() == markdown(report)
    gray = gaps["gray"]
    line = f"| gray | 600 | {gray.train:.2f} | {gray.test:.2f} | {rows['gray'].pairwise:.3f} |"
    assert line in markdown(report).splitlines()
    assert f"{gray.train:.2f}" != f"{gray.test:.2f}"
    one = gaps["one"]  # 5 images, 32 features
    assert f"| one | 5 | {one.train:.2f} † | {one.test:.2f} † |" in markdown(report)
    assert markdown(report).count("†") == 3 and "\n† fewer images than" in markdown(report)
    assert "| FD to train, pca-32 of digits 16²×1 |" in markdown(report)
    assert written["rows"][2]["gaps"][0]["train"] == gaps["copies"].train
    picture = np.asarray(Image.open(tmp_path / "out" / "comparison.png"))
    assert picture.shape[1] == 4 * 98 + 2  # the data, and three folders
    assert picture.shape[0] < 6 * 98 + 40  # five images, as in the smallest folder
    tile = picture[-98:-2, 2 + 98 : 98 + 98, 0]
    assert np.array_equal(tile, train[4, :, :, 0].repeat(6, axis=0).repeat(6, axis=1))
    tile = picture[-98:-2, 2:98, 0]
    assert np.array_equal(tile, test[4, :, :, 0].repeat(6, axis=0).repeat(6, axis=1))


def test_images_are_in_the_order_of_their_seeds(config, train, tmp_path):
    """Check that the same seeds are side by side, even with unequal numbers of digits."""
    folder = write_images(tmp_path / "a", train[:2])
    (folder / "000000.png").rename(folder / "1000000.png")
    (folder / "000001.png").rename(folder / "999999.png")
    picture = compare(config, {"a": folder}).picture
    tile = picture[-98:-2, 100:196, 0]
    assert np.array_equal(tile, train[0, :, :, 0].repeat(6, axis=0).repeat(6, axis=1))


def test_folders_are_named():
    assert str(parse_folders(["a, b=x/y", "c=d=e"])["c"]) == "d=e"
    for wrong in (["a"], ["=x"], ["a="], ["a=x", "a=y"], ["data=x"]):
        with pytest.raises(UserError, match="must be TITLE=FOLDER, with a title that no other"):
            parse_folders(wrong)
    with pytest.raises(UserError, match="needs one or more --folder"):
        parse_folders([])


def test_wrong_folders_are_named(config, train, tmp_path):
    with pytest.raises(UserError, match="nothing holds 0 generated images; at least 2"):
        compare(config, {"a": tmp_path / "nothing"})
    small = write_images(tmp_path / "small", train[:3, :8, :8])
    other = write_images(tmp_path / "other", train[:2])
    for seed in (0, 1):
        (other / f"{seed:06d}.png").rename(other / f"{seed + 9:06d}.png")
    same = write_images(tmp_path / "same", train[:3])
    with pytest.raises(UserError, match="no seed in common"):
        compare(config, {"a": other, "b": same})
    with pytest.raises(
        UserError, match=r"000000.png has .* \(8, 8, 'L'\), but .* \(16, 16, 'L'\); use"
    ):
        compare(config, {"a": small})


def deep(side):
    """Return a PNG of 16 bits."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side), 999, np.uint16)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (lambda png: png[: len(png) // 2], "cannot be read"),
        (lambda png: b"GIF89a" + png, "cannot be read"),
        (lambda png: png[:16] + b"\0\1\0\0" * 2 + png[24:], "cannot be read|has height, width"),
        (lambda png: deep(16), "has height, width and mode .*I;16"),
    ],
    ids=["truncated", "no PNG", "four billion pixels", "16 bits"],
)
def test_damaged_images_are_named(damaged, message, config, train, tmp_path):
    folder = write_images(tmp_path / "a", train[:3])
    path = folder / "000001.png"
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(UserError, match=f"000001.png.*({message})"):
        compare(config, {"a": folder})


def test_the_same_seeds_stand_side_by_side(config, train, tmp_path, caplog):
    """Compare folders with different seeds; a warning says that their sizes differ."""
    folders = {
        "a": write_images(tmp_path / "a", train[:5]),
        "b": write_images(tmp_path / "b", train[:5]),
    }
    (folders["a"] / "000001.png").unlink()
    (folders["a"] / "settings.json").write_text('{"steps": 6}')
    report = compare(config, folders)
    assert "different numbers of images" in caplog.text
    assert report.settings == {"a": {"steps": 6}, "b": None}
    assert report.picture.shape[0] < 5 * 98 + 40  # the four seeds that both have
    second = report.picture[-3 * 98 :, 100:][:96, :96, 0]
    assert np.array_equal(second, train[2, :, :, 0].repeat(6, axis=0).repeat(6, axis=1))
    assert np.array_equal(second, report.picture[-3 * 98 :, 198:][:96, :96, 0])
