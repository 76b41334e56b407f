"""From tissue to a gray image: attenuation, depth-dependent point spread, looks, noise, log compression, gray map.

The echo field is the tissue's complex Gaussian scatterers and mirrors seen through a linear, depth-dependent point spread function
(Jensen, "Linear description of ultrasound imaging systems", 1999, sections 4 and 5); its envelope is Rayleigh speckle (Burckhardt 1978,
doi:10.1109/T-SU.1978.30978: mean over standard deviation 1.91 for one look).
"""

from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from busgen_core.phantom.fields import Field

SOUND_CM_US = 0.154  # speed of sound, cm per microsecond
FWHM = 2.3548  # full width at half maximum over the standard deviation of a Gaussian
Echo = NDArray[np.complex64]


def two_way_loss_db(loss: Field, *, step_cm: Field, mhz: Field) -> Field:
    """Loss down to each row and back, dB, [batch, rows, columns]: 2 f times the running integral of ``loss`` (dB/cm/MHz) over depth.

    Source: Szabo, "Diagnostic Ultrasound Imaging", 2nd edition, 2014, section 4.2, with attenuation proportional to frequency.

    >>> one = np.ones((1, 1, 1), np.float32)
    >>> two_way_loss_db(np.full((1, 4, 1), 0.5, np.float32), step_cm=0.25 * one, mhz=10 * one).ravel().tolist()
    [2.5, 5.0, 7.5, 10.0]
    """
    running = np.cumsum(loss, axis=1, dtype=np.float32)
    running *= 2 * step_cm * mhz
    return running


def lateral_sigma_cm(z_cm: Field, *, mhz: Field, f_number: Field, focus_cm: Field) -> Field:
    """Standard deviation of the lateral beam at each depth, cm.

    The width at half maximum is lambda F at the focus and grows as a Gaussian beam's, w0 sqrt(1 + ((z - focus) / zr)^2), with the depth of
    field zr = 4 lambda F^2 (Szabo, "Diagnostic Ultrasound Imaging", 2nd edition, 2014, sections 6.5 and 7.4).
    """
    wavelength = SOUND_CM_US / mhz
    away = (z_cm - focus_cm) / (4 * wavelength * f_number**2)
    return np.asarray(wavelength * f_number * np.sqrt(1 + away**2) / np.float32(FWHM), dtype=np.float32)


def axial_sigma_cm(*, mhz: Field, cycles: Field) -> Field:
    """Standard deviation of the pulse along the beam, cm: half of ``cycles`` wavelengths at half maximum, for there and back."""
    return np.asarray(cycles * (SOUND_CM_US / mhz) / 2 / np.float32(FWHM), dtype=np.float32)


@lru_cache(maxsize=8)
def _frequencies(columns: int) -> Field:
    return np.asarray(-2 * np.pi**2 * scipy.fft.fftfreq(columns) ** 2, dtype=np.float32)


def lateral_transfer(sigma_px: Field, columns: int) -> tuple[Field, Field]:
    """Transfer functions of Gaussian blur, [batch, rows, columns], and [batch, rows, 1] the root of the power that white noise keeps.

    exp(-2 pi^2 f^2 sigma^2), f in cycles a column: one row is one depth, so that the blur may change with depth at the cost of one FFT.
    """
    transfer = np.exp(np.square(sigma_px) * _frequencies(columns))
    return transfer, np.sqrt(np.square(transfer).mean(axis=2, keepdims=True))


def axial_taps(sigma_px: Field, *, radius: int) -> Field:
    """Gaussian weights that sum to 1, float32 [batch, 2 radius + 1], for standard deviations ``sigma_px`` [batch, 1] in rows."""
    reach = np.arange(-radius, radius + 1, dtype=np.float32)
    taps: Field = np.exp(-np.square(reach) / (2 * np.square(np.maximum(sigma_px, 0.2))))
    return np.asarray(taps / taps.sum(axis=1, keepdims=True), dtype=np.float32)


def blur(echo: Echo, transfer: Field, taps: Field) -> Echo:
    """Blur along columns by the transfer functions and along rows by the taps; edges mirror along rows and wrap along columns.

    ``echo`` is used as scratch space.
    """
    spectrum = scipy.fft.fft(echo, axis=2, overwrite_x=True)
    spectrum *= transfer
    across = scipy.fft.ifft(spectrum, axis=2, overwrite_x=True)
    radius, rows = taps.shape[1] // 2, across.shape[1]
    padded = np.pad(across, ((0, 0), (radius, radius), (0, 0)), mode="reflect").view(np.float32)  # real taps: work on the parts
    weights = taps[:, radius:, None, None]
    out = weights[:, 0] * across.view(np.float32)
    for reach in range(1, radius + 1):
        pair = padded[:, radius - reach : radius - reach + rows] + padded[:, radius + reach : radius + reach + rows]
        pair *= weights[:, reach]
        out += pair
    return np.asarray(out.view(np.complex64))
