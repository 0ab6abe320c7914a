r"""Drawings put in a common frame, and drawings distorted at random.

A network without convolutions, and any distance between pixels, takes the same character a few pixels
further on for another one. Moments take out place and size (Casey 1970, "Moment normalization of
handprinted characters"). With the ink as a mass of 1, m its centre and :math:`\sigma_y, \sigma_x` its
standard deviations down and across, the drawing is moved and stretched until the centre is that of the
image and

.. math:: \sqrt{\sigma_y \sigma_x} = 6 \text{ pixels}, \qquad
          \sigma_y / \sigma_x = \sqrt{\text{what it was}} ,

the square root since slim characters are to stay slimmer than broad ones (Liu, Nakashima, Sako &
Fujisawa 2004, "Handwritten digit recognition: investigation of normalization and feature extraction
techniques"). What was between 1/2 and 2 counts as it is, what was beyond as that bound: a bar stays a
bar.
"""

from __future__ import annotations

import numpy as np

from npmeta._support.validation import Array

#: Standard deviation of the ink of an aligned drawing, in pixels: nearly all of it is in the image.
SPREAD = 6.0

#: Least standard deviation that is believed, in pixels: a dot does not fill the image.
LEAST = 1.0

#: Greatest aspect, of tall to broad or of broad to tall.
ASPECT = 2.0


def aligned(images: Array) -> Array:
    """Drawings ``(..., side, side)`` of ink 0..255, uint8, in the common frame.

    A drawing without ink stays as it is.
    """
    framed = np.empty_like(images)
    for at in np.ndindex(images.shape[:-2]):
        framed[at] = _aligned(images[at].astype(np.float64))
    return framed


def _aligned(ink: Array) -> Array:
    if not ink.any():
        return ink
    # Mean and standard deviation of where the ink is, down (of row sums) and across (of column sums).
    place = np.arange(len(ink))
    shares = ink.sum(1) / ink.sum(), ink.sum(0) / ink.sum()
    mean = np.array([share @ place for share in shares])
    deviation = [np.sqrt(share @ (place - m) ** 2) for share, m in zip(shares, mean, strict=True)]
    tall, broad = np.maximum(deviation, LEAST)
    aspect = np.clip(tall / broad, 1 / ASPECT, ASPECT)
    size = np.sqrt(tall * broad) / SPREAD
    # A pixel p from the middle of the new image is at mean + stretch ∘ p in the old one.
    stretch = size * np.array([aspect**0.25, aspect**-0.25])
    return np.rint(_sampled(ink, np.diag(stretch), mean))


def distorted(x: Array, u: Array, strength: float) -> Array:
    """Drawings ``(n, side, side)``, each under a linear map I + M and a shift of its own.

    The entries of M have standard deviation ``strength``, shifts that of 10 · strength pixels, and
    both are uniform; they are made of ``u (n, 6)`` in [0, 1).
    """
    drawn = (2 * u - 1) * np.sqrt(3) * strength
    maps, shifts = np.eye(2) + drawn[:, :4].reshape(-1, 2, 2), 10 * drawn[:, 4:]
    middle = (x.shape[-1] - 1) / 2
    moved = [_sampled(*of_one) for of_one in zip(x, maps, middle + shifts, strict=True)]
    return np.array(moved, dtype=x.dtype)


def _sampled(image: Array, matrix: Array, centre: Array) -> Array:
    """The image whose pixel p from the middle is the given one at ``centre + matrix @ p``, linearly
    between pixels; paper around."""
    from scipy.ndimage import affine_transform

    middle = (image.shape[-1] - 1) / 2
    return affine_transform(image, matrix, centre - matrix @ [middle, middle], order=1)
