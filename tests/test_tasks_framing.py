"""Drawings in a common frame, and drawings distorted at random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npmeta.tasks.framing import ASPECT, SPREAD, aligned, distorted

SIDE = 28


def moments(image):
    """Centre and standard deviation of the ink, (down, across) each."""
    ink = image / image.sum()
    place = np.indices(image.shape)
    centre = (ink * place).sum((1, 2))
    return centre, np.sqrt((ink * (place - centre[:, None, None]) ** 2).sum((1, 2)))


def ring(centre, deviation):
    """An elliptic ring of ink; that of the deviations given would have no width."""
    y, x = np.indices((SIDE, SIDE))
    r = ((y - centre[0]) / deviation[0]) ** 2 + ((x - centre[1]) / deviation[1]) ** 2
    return np.rint(255 * np.exp(-8 * (r - 2) ** 2)).astype(np.uint8)


@given(
    st.tuples(st.floats(10, 17), st.floats(10, 17)),
    st.floats(2.5, 4.0),
    st.floats(-1.0, 1.0),
)
def test_ink_comes_to_a_common_place_and_size(centre, size, aspect):
    stretch = 2 ** (aspect / 2)
    image = ring(centre, (size * stretch, size / stretch))
    _, before = moments(image.astype(float))
    after_centre, after = moments(aligned(image).astype(float))
    # Interpolation between pixels of a ring as thin as they are, and the image's edge, cost so much.
    np.testing.assert_allclose(after_centre, (SIDE - 1) / 2, atol=0.2)
    assert np.sqrt(after.prod()) == pytest.approx(SPREAD, rel=0.05)
    r = before[0] / before[1]
    expected = r / np.sqrt(np.clip(r, 1 / ASPECT, ASPECT))
    assert after[0] / after[1] == pytest.approx(expected, rel=0.05)


def test_a_moved_drawing_is_the_same_drawing():
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[4:14, 6] = image[13, 6:13] = 255
    there = np.roll(image, (8, 9), axis=(0, 1))
    np.testing.assert_array_equal(aligned(there), aligned(image))
    assert (aligned(image) != image).any()


def test_bars_and_dots_keep_their_shape():
    bar = np.zeros((SIDE, SIDE), np.uint8)
    bar[4:24, 13] = 255
    _, (down, across) = moments(aligned(bar).astype(float))
    assert down > 2 * across
    dot = np.zeros((SIDE, SIDE), np.uint8)
    dot[3, 20] = 255
    # Its deviation counts as one pixel and not as nothing, so that it grows, and has an end.
    assert aligned(dot)[0].max() == aligned(dot)[:, 0].max() == 0
    assert aligned(dot)[13:15, 13:15].min() > 0


def test_paper_without_ink_stays():
    assert not aligned(np.zeros((2, 3, SIDE, SIDE), np.uint8)).any()
    assert aligned(np.zeros((2, 3, SIDE, SIDE), np.uint8)).shape == (2, 3, SIDE, SIDE)


def test_maps_are_of_the_strength_asked_for():
    image = ring((13.5, 13.5), (3.0, 3.0)).astype(np.float32) / 255
    n, strength = 2000, 0.1
    u = np.random.default_rng(0).random((n, 6))
    drawn = distorted(np.broadcast_to(image, (n, SIDE, SIDE)), u, strength)
    assert drawn.dtype == np.float32
    centres = np.array([moments(one)[0] for one in drawn])
    # A shift by s is seen at -(I + M)^-1 s: some three in a hundred more than s for this strength;
    # the mean of 2000 has an error of 0.02.
    np.testing.assert_allclose(centres.mean(0), 13.5, atol=0.15)
    np.testing.assert_allclose(centres.std(0), 10 * strength, rtol=0.1)
    np.testing.assert_array_equal(distorted(image[None], np.full((1, 6), 0.5), strength), image[None])
