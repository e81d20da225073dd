"""How the demo set's sounds are recorded: placement, echo, equalisation, background, level and clipping, all random.

The recording conditions are as strong as the classes: the average spectrum of a clip says little about its class, the
changes over time say more.

Shapes: n = samples of a clip; `rate` is in Hz.
"""

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from datasets.demo_sounds import (
    CLASSES,
    SOUNDS,
    band,
    coloured_noise,
    envelope,
    log_uniform,
    spectral_filter,
    wander,
)
from utils.io.errors import InputError

SNR = {1: (15.0, 35.0), 2: (5.0, 15.0)}  # dB, by salience


def _level(x, rate):
    """Measure the RMS of the loudest fifth of the 20 ms frames, to leave out the pauses between sparse events."""
    size = rate // 50
    power = np.sort((x[: len(x) // size * size].reshape(-1, size) ** 2).mean(axis=1))
    return np.sqrt(power[-max(1, len(power) // 5) :].mean()) + 1e-9


def _echo(rng, x, rate):
    """Add a room, whose echo is noise that decays with a random reverberation time, [n] -> [n]."""
    reach = rng.uniform(0.05, 0.5)  # seconds to -60 dB
    tail = rng.standard_normal(int(reach * rate)) * 10 ** (-3 * np.linspace(0, 1, int(reach * rate)))
    tail *= rng.uniform(0, 0.9) / np.sqrt((tail**2).sum())
    tail[0] += 1
    size = next_fast_len(len(x) + len(tail), real=True)
    return irfft(rfft(x, size) * rfft(tail, size), size)[: len(x)]


def _equaliser(rng, strength=9.0):
    """Draw a microphone and a distance: the gain of a smooth curve over eight bands, a high-pass and a low-pass."""
    bands = np.log2(np.geomspace(60, 12000, 8))
    curve = strength * rng.standard_normal(8)
    edges = band(log_uniform(rng, 20, 300), log_uniform(rng, 2500, 16000))
    return lambda f: 10 ** (np.interp(np.log2(np.maximum(f, 1.0)), bands, curve) / 20) * edges(f)


def _background(rng, n, rate, class_name):
    """Make street noise of random colour that comes and goes, at times with another class far away, [n], level 1."""
    noise = coloured_noise(rng, n, rate, 30, 20000, rng.uniform(0, 2)) * 2 ** wander(rng, n, rate, 0.7)
    noise /= _level(noise, rate)
    if rng.uniform() < 0.3:
        other = rng.choice([name for name in CLASSES if name != class_name])
        far = SOUNDS[other](rng, n, rate)
        noise += rng.uniform(0.2, 0.6) * far / _level(far, rate)
    return noise / _level(noise, rate)


def _scene(rng, n, rate, class_name):
    """Place the sound: it lasts 60 to 100 % of the clip and starts anywhere, in a room and at a distance, [n]."""
    active = int(n * rng.uniform(0.6, 1.0))
    onset = rng.integers(0, n - active + 1)
    gate = envelope(active, rate, *log_uniform(rng, 0.005, 0.4, 2))
    sound = np.zeros(n)
    sound[onset : onset + active] = SOUNDS[class_name](rng, active, rate) * gate
    return spectral_filter(_echo(rng, sound, rate), rate, _equaliser(rng))


def synthesise(
    class_name: str, rng: np.random.Generator, sample_rate: int = 16000, duration: float = 4.0, salience: int = 1
) -> np.ndarray:
    """Make one recording of a sound class, of `duration` seconds. The same state of `rng` gives the same samples.

    Salience 1: the sound stands out; 2: it lies in the background. Returns float32 [n], within -1..1, never silent.

    Raises
    ------
    InputError
        `class_name` is not one of `CLASSES`.
    """
    if class_name not in SOUNDS:
        raise InputError(f"No sound class {class_name!r}: choose from {', '.join(CLASSES)}.")
    n = int(duration * sample_rate)
    sound = _scene(rng, n, sample_rate, class_name)
    background = _background(rng, n, sample_rate, class_name)
    mix = sound / _level(sound, sample_rate) + background * 10 ** (-rng.uniform(*SNR[salience]) / 20)
    mix = spectral_filter(mix, sample_rate, _equaliser(rng, strength=3.0))  # the microphone hears both
    mix /= np.abs(mix).max()
    if rng.uniform() < 0.15:  # overdriven input
        mix = np.clip(mix * rng.uniform(1.5, 4.0), -1, 1)
    return (mix * 0.99 * log_uniform(rng, 0.03, 1.0)).astype(np.float32)
