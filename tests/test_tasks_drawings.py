"""Drawings of one's own are read as those of Omniglot are: ink 1 on paper 0, whatever the file has."""

from pathlib import Path

import numpy as np
import pytest

from npmeta.tasks import drawings, read_image

Image = pytest.importorskip("PIL.Image", reason="reading drawings needs pillow")


def drawing(height: int = 56, width: int = 56) -> np.ndarray:
    """A thick asymmetric L of ink."""
    ink = np.zeros((height, width), bool)
    ink[height // 7 : -height // 7, width // 4 : width // 4 + 6] = True
    ink[-height // 7 - 6 : -height // 7, width // 4 : -width // 4] = True
    return ink


@pytest.fixture
def picture(tmp_path):
    def write(array: np.ndarray, mode: str | None = None) -> Path:
        path = tmp_path / "picture.png"
        image = Image.fromarray(array)
        (image if mode is None else image.convert(mode)).save(path)
        return path

    return write


def test_ink_is_1_on_either_ground(picture):
    ink = drawing()
    expected = drawings._resize(255.0 * ink).ravel() / np.float32(255)
    for paper, pen in ((255, 0), (0, 255), (230, 20), (200, 90), (30, 240), (100, 101)):
        gray = np.where(ink, pen, paper).astype(np.uint8)
        np.testing.assert_array_equal(read_image(picture(gray)), expected)
    for mode in ("1", "RGB", "P"):
        page = np.where(ink, 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(read_image(picture(page, mode)), expected)


def test_transparency_is_white_paper(picture):
    ink = drawing()
    expected = drawings._resize(255.0 * ink).ravel() / np.float32(255)
    rgba = np.zeros((56, 56, 4), np.uint8)  # black everywhere, visible where there is ink
    rgba[..., 3] = 255 * ink
    np.testing.assert_array_equal(read_image(picture(rgba)), expected)
    la = np.stack([np.zeros((56, 56), np.uint8), 255 * ink.astype(np.uint8)], -1)
    np.testing.assert_array_equal(read_image(picture(la)), expected)


def test_sixteen_bits_are_not_clipped(picture):
    ink = drawing()
    half = np.where(np.arange(56) < 28, 20000, 40000)  # ink of two darknesses
    gray = np.where(ink, half, 60000).astype(np.uint16)
    x = read_image(picture(gray)).reshape(28, 28)
    assert x.max() == 1
    levels = {round(float(v), 2) for v in x.ravel() if v > 0}
    assert {1.0, 0.5} <= levels
    assert max(levels - {1.0}) < 0.8
    expected = np.rint(gray / 65535 * 255)
    np.testing.assert_array_equal(drawings._decode(picture(gray), ""), expected)


def test_grey_is_kept(picture):
    gray = np.full((56, 56), 250, np.uint8)
    gray[10:20, 10:20] = 50
    gray[30:40, 30:40] = 150
    gray[50:] = 255  # lighter than paper
    x = read_image(picture(gray)).reshape(28, 28)
    assert x[5, 5] == 1
    assert x[15, 15] == np.float32(128 / 255)  # 100 of 200 levels, to the nearest of 255
    assert x[0, 0] == x[27, 0] == 0


def test_a_picture_is_made_square_with_paper(picture):
    ink = np.zeros((28, 56), bool)
    ink[:, 10:14] = True
    for paper, pen in ((255, 0), (0, 255)):
        x = read_image(picture(np.where(ink, pen, paper).astype(np.uint8))).reshape(28, 28)
        expected = np.zeros((28, 28))
        expected[7:21, 5:7] = 1
        np.testing.assert_array_equal(x, expected)
        x = read_image(picture(np.where(ink.T, pen, paper).astype(np.uint8))).reshape(28, 28)
        np.testing.assert_array_equal(x, expected.T)


def test_pictures_that_cannot_be_read(tmp_path, picture):
    with pytest.raises(ValueError, match=r"^no such file or folder: nowhere\.png$"):
        read_image("nowhere.png")
    with pytest.raises(ValueError, match="is a folder, an image file is expected"):
        read_image(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as an image: "):
        read_image(tmp_path / "text.png")
    with pytest.raises(ValueError, match="holds a single colour and no drawing"):
        read_image(picture(np.full((50, 50), 255, np.uint8)))


def test_the_size_of_an_image_is_looked_at_before_its_pixels(tmp_path):
    Image.new("1", (5000, 3)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png cannot be read as an image: \(5000, 3\) pixels"):
        read_image(tmp_path / "wide.png")
