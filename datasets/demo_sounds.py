"""The ten kinds of sound of the demo set, each a small physical model with random pitch, rate and timbre.

Shapes: n = samples of a sound; `rate` is in Hz.
"""

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter

# Building blocks


def spectral_filter(x, rate, gain):
    """Apply a zero-phase filter, given as gain by frequency in Hz, [n] -> [n]."""
    size = next_fast_len(len(x) + rate // 10, real=True)  # 0.1 s of padding: else the end wraps to the start
    return irfft(rfft(x, size) * gain(np.fft.rfftfreq(size, 1 / rate)), size)[: len(x)]


def band(low, high, colour=0.0):
    """Make the gain of a band-pass with soft edges (Hz) and a tilt: power falls as 1 / f ** colour."""

    def gain(f):
        f = np.maximum(f, 1.0)
        below, above = (low / f) ** 2, (f / high) ** 2
        return (f / 1000) ** (-colour / 2) / np.sqrt((1 + below**2) * (1 + above**2))

    return gain


def _formants(centres, width):
    """Make a gain with a bump at each of the `centres` (Hz), `width` octaves wide, over a floor of -26 dB."""

    def gain(f):
        octaves = np.log2(np.maximum(f, 1.0)[:, None] / np.asarray(centres))
        return 0.05 + np.exp(-0.5 * (octaves / width) ** 2).sum(axis=1)

    return gain


def coloured_noise(rng, n, rate, low=20.0, high=20000.0, colour=0.0):
    """Draw coloured noise of unit RMS, [n], as a spectrum: that saves one transform."""
    size = next_fast_len(n, real=True)
    freqs = np.fft.rfftfreq(size, 1 / rate)
    spectrum = rng.standard_normal(2 * len(freqs)).view(complex) * band(low, high, colour)(freqs)
    x = irfft(spectrum, size)[:n]
    return x / (np.sqrt(np.mean(x**2)) + 1e-9)


def _tone(freq, amps, rate, phase=0.0):
    """Make a harmonic tone that follows `freq` (Hz, [n]), without the harmonics that would alias.

    One cycle is tabulated and read at the running phase, so that the cost doesn't grow with the number of harmonics.
    """
    amps = np.asarray(amps)[: max(1, int(0.45 * rate / freq.max()))]
    cycle = np.arange(2048) / 2048
    order = np.arange(1, len(amps) + 1)
    table = (amps[:, None] * np.sin(2 * np.pi * order[:, None] * (cycle + 0.31 * order[:, None] ** 2))).sum(axis=0)
    turns = np.cumsum(freq) / rate + phase
    return table[(turns * 2048).astype(np.int64) % 2048]


def _spans(rng, n, rate, on, off):
    """Alternate sound and pause, both of uniform random length (s): a list of (start, stop) in samples."""
    spans, start = [], 0
    while start < n:
        stop = start + max(16, int(rng.uniform(*on) * rate))
        spans.append((start, min(stop, n)))
        start = stop + int(rng.uniform(*off) * rate)
    return [span for span in spans if span[1] - span[0] >= 16]


def _pulses(rng, n, rate, per_second, jitter):
    """Make a train of impulses of random strength, [n]; `jitter`: standard deviation of a gap, relative to the gap."""
    gaps = np.maximum(0.15, 1 + jitter * rng.standard_normal(int(n / rate * per_second * 3) + 8)) / per_second
    at = ((np.cumsum(gaps) - gaps[0] * rng.uniform(0.3, 1)) * rate).astype(np.int64)
    at = at[at < n]
    train = np.zeros(n)
    np.add.at(train, at, rng.uniform(0.6, 1.0, len(at)))
    return train


def _decay(train, rate, seconds):
    """Let every impulse of `train` decay exponentially, to 1/e in `seconds`, [n]."""
    return lfilter([1.0], [1.0, -np.exp(-1 / (seconds * rate))], train)


def _ring(train, rate, freqs, seconds, amps):
    """Let every impulse of `train` strike damped modes (Hz, seconds to 1/e, amplitude), [n]."""
    y = np.zeros(len(train))
    for freq, tau, amp in zip(freqs, seconds, amps, strict=True):
        if freq < 0.45 * rate:
            r, w = np.exp(-1 / (tau * rate)), 2 * np.pi * freq / rate
            y += amp * lfilter([0.0, r * np.sin(w)], [1.0, -2 * r * np.cos(w), r * r], train)
    return y


def envelope(n, rate, rise, fall):
    """Make an envelope that opens over `rise` and closes over `fall` seconds, [n]."""
    t = np.arange(n) / rate
    return np.clip(t / rise, 0, 1) * np.clip((t[-1] - t) / fall, 0, 1)


def delay(x, samples):
    """Shift later in time, zeros first, [n] -> [n]."""
    return np.concatenate([np.zeros(samples, x.dtype), x])[: len(x)]


def wander(rng, n, rate, every):
    """Draw a smooth random curve in about -1..1 with a new value each `every` seconds, [n]."""
    knots = rng.uniform(-1, 1, int(n / rate / every) + 3)
    return np.interp(np.arange(n) / rate / every + rng.uniform(), np.arange(len(knots)), knots)


def log_uniform(rng, low, high, size=None):
    """Draw between `low` and `high` with equal probability per octave."""
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


# The sounds: (rng, n, rate) -> [n]


def _birdsong(rng, n, rate):
    """Make phrases of one to three syllables, each a short glide or trill, repeated with gaps."""
    base, out = log_uniform(rng, 1100, 4500), np.zeros(n)
    syllables = [
        (rng.uniform(0.8, 1.4), rng.uniform(-0.4, 0.4), rng.uniform(-0.3, 0.3), rng.choice([0, 0, 25, 40]))
        for _ in range(rng.integers(1, 4))
    ]  # height, slope and bow in octaves, trill rate in Hz
    length = rng.uniform(0.05, 0.25)
    pauses = (0.02, rng.choice([0.1, 0.3, 0.6]))
    for number, (start, stop) in enumerate(_spans(rng, n, rate, (0.7 * length, 1.3 * length), pauses)):
        height, slope, bow, trill = syllables[number % len(syllables)]
        u = np.linspace(-1, 1, stop - start)
        octaves = slope * u + bow * (1 - 2 * u**2) + 0.12 * np.sin(2 * np.pi * trill * np.arange(stop - start) / rate)
        freq = np.minimum(base * height * 2**octaves, 0.42 * rate)
        out[start:stop] = _tone(freq, [1, 0.2, 0.05], rate) * np.cos(np.pi / 2 * u) ** 0.7 * rng.uniform(0.5, 1)
    return out


def _car_horn(rng, n, rate):
    """Make one to several honks of two steady reeds about a third apart."""
    low, interval = log_uniform(rng, 230, 620), rng.choice([1.0, 1.19, 1.26, 1.34])
    amps = np.arange(1, 25) ** -rng.uniform(0.3, 1.3) * rng.uniform(0.3, 1, 24)
    long = rng.choice([0.2, 0.5, 2.0])
    out = np.zeros(n)
    for start, stop in _spans(rng, n, rate, (0.5 * long, 1.5 * long), (0.05, 0.6)):
        bend = 1 - 0.03 * np.exp(-np.arange(stop - start) / (0.03 * rate))  # the reed takes a moment to reach its pitch
        reeds = sum(_tone(low * ratio * bend, amps, rate, rng.uniform()) for ratio in (1.0, interval * 1.003))
        out[start:stop] = reeds * envelope(stop - start, rate, 0.015, 0.04)
    return out


def _dog_bark(rng, n, rate):
    """Make separate hoarse voiced bursts whose pitch rises and falls, with fixed formants."""
    pitch, length = log_uniform(rng, 180, 900), rng.uniform(0.07, 0.22)
    pauses = (0.1, rng.uniform(0.25, 0.9))
    hoarse = rng.uniform(0.2, 0.8)
    out = np.zeros(n)
    for start, stop in _spans(rng, n, rate, (0.8 * length, 1.2 * length), pauses):
        u = np.linspace(0, 1, stop - start)
        freq = pitch * rng.uniform(0.85, 1.15) * (0.75 + 0.5 * np.sin(np.pi * u**0.6))
        voice = _tone(freq, np.arange(1, 19) ** -0.6, rate)
        breath = rng.standard_normal(stop - start)
        loudness = np.minimum(u * 12, 1) * (1 - u) ** 0.8 * rng.uniform(0.5, 1)
        out[start:stop] = ((1 - hoarse) * voice + hoarse * breath) * loudness
    mouth = pitch * np.array([1.6, 3.2]) * rng.uniform(0.8, 1.3, 2)
    return spectral_filter(out, rate, _formants(mouth, rng.uniform(0.3, 0.6)))


def _engine(rng, n, rate):
    """Make idling: firing pulses at a slowly wandering rate, uneven between cylinders, with exhaust noise in step."""
    firing = log_uniform(rng, 14, 55) * 2 ** (rng.uniform(0, 0.25) * wander(rng, n, rate, rng.uniform(0.3, 1.5)))
    amps = np.exp(-np.arange(120) / rng.uniform(8, 40)) * rng.uniform(0.2, 1, 120)
    hum = _tone(firing / 2, amps, rate)  # half the firing rate: two strokes that differ
    pulse = (0.5 + 0.5 * np.cos(2 * np.pi * np.cumsum(firing) / rate)) ** rng.uniform(1, 6)
    hiss = coloured_noise(rng, n, rate, 200, rng.uniform(1500, 7000), 0.5) * (0.15 + pulse)
    return hum / hum.std() + rng.uniform(0.4, 2.0) * hiss


def _footsteps(rng, n, rate):
    """Make steps, heel then toe, of two feet that differ a little, on a soft or a gritty floor."""
    steps = _pulses(rng, n, rate, rng.uniform(1.4, 3.2), 0.05)
    toe = delay(steps, int(rng.uniform(0.05, 0.12) * rate)) * rng.uniform(0.3, 0.9)
    thud = log_uniform(rng, 80, 400)
    heel_noise = coloured_noise(rng, n, rate, thud, thud * rng.uniform(3, 20), 0.5)
    toe_noise = coloured_noise(rng, n, rate, 3 * thud, thud * rng.uniform(10, 60), 0.0)
    if rng.uniform() < 0.5:  # gravel: the noise itself comes in grains
        toe_noise = toe_noise * np.minimum(_decay(_pulses(rng, n, rate, 150, 0.6), rate, 0.002), 2)
    heel = heel_noise * _decay(steps, rate, rng.uniform(0.012, 0.04))
    return heel + rng.uniform(0.4, 1.2) * toe_noise * _decay(toe, rate, rng.uniform(0.02, 0.06))


def _hammering(rng, n, rate):
    """Make blows on wood or metal: a click and a handful of damped modes, sometimes with a bounce."""
    blows = _pulses(rng, n, rate, rng.uniform(1.4, 4.5), rng.uniform(0.02, 0.12))
    if rng.uniform() < 0.4:
        blows += delay(blows, int(rng.uniform(0.06, 0.12) * rate)) * rng.uniform(0.2, 0.5)
    modes = log_uniform(rng, 150, 900) * np.cumprod(np.r_[1, rng.uniform(1.3, 2.1, 6)])
    tau = log_uniform(rng, 0.012, 0.15) * (modes / modes[0]) ** -0.4
    body = _ring(blows, rate, modes, tau, rng.uniform(0.2, 1, 7))
    click = coloured_noise(rng, n, rate, 500, 9000) * _decay(blows, rate, rng.uniform(0.002, 0.01))
    return body + rng.uniform(0.3, 1.0) * click


def _jackhammer(rng, n, rate):
    """Make hard regular blows, 9 to 28 per second, in bursts, with the rattle of the chisel."""
    blows = _pulses(rng, n, rate, log_uniform(rng, 9, 28), 0.02)
    on = np.zeros(n)
    for start, stop in _spans(rng, n, rate, (0.5, 3.0), (0.1, 0.5)):
        on[start:stop] = 1
    blows *= on
    low = log_uniform(rng, 100, 800)
    rattle = coloured_noise(rng, n, rate, low, low * rng.uniform(8, 40), rng.uniform(0, 1))
    rattle *= _decay(blows, rate, rng.uniform(0.006, 0.03))
    modes = log_uniform(rng, 150, 3000, 4)
    steel = _ring(blows, rate, modes, np.full(4, rng.uniform(0.004, 0.02)), rng.uniform(0.1, 0.6, 4))
    return rattle + rng.uniform(0.2, 1.0) * steel


def _rain(rng, n, rate):
    """Make a hiss of many far drops, and single near drops, each a short click that may ring."""
    hiss = coloured_noise(rng, n, rate, log_uniform(rng, 100, 800), rng.uniform(3000, 12000), rng.uniform(-0.3, 1.0))
    out = rng.uniform(0.1, 0.6) * hiss
    for _ in range(3):  # three sizes of drop or surface struck
        drops = _pulses(rng, n, rate, log_uniform(rng, 8, 80), 0.7) ** 3
        freq = log_uniform(rng, 500, 6000)
        out += 3 * _ring(drops, rate, [freq, 1.7 * freq], [rng.uniform(0.001, 0.006)] * 2, rng.uniform(0.3, 1.5, 2))
    return out


def _siren(rng, n, rate):
    """Make a wail (slow sweep), a yelp (fast sweep) or two alternating tones, with harmonics of a horn speaker."""
    low, octaves = log_uniform(rng, 350, 900), rng.uniform(0.35, 1.3)
    kind = rng.choice(3)
    cycles = log_uniform(rng, *[(0.2, 0.6), (1.5, 4.0), (0.7, 1.8)][kind]) * np.arange(n) / rate + rng.uniform()
    saw = cycles % 1
    shape = [0.5 - 0.5 * np.cos(2 * np.pi * cycles), np.minimum(saw / 0.7, (1 - saw) / 0.3), (saw < 0.5) * 0.6][kind]
    amps = np.arange(1, 13) ** -rng.uniform(0.8, 2.0) * rng.uniform(0.3, 1, 12)
    return _tone(low * 2 ** (octaves * shape), amps, rate)


def _surf(rng, n, rate):
    """Make noise that swells and breaks: first the low roar, then the foam, which fades slowly."""
    waves = np.arange(n) / rate / rng.uniform(1.2, 3.0) + rng.uniform()
    peak = rng.uniform(0.3, 0.6)
    swell, late = (np.interp(phase % 1, [0, peak, 1], [0, 1, 0]) for phase in (waves, waves - 0.15))
    roar = coloured_noise(rng, n, rate, 40, rng.uniform(400, 1500), 1.0) * (0.1 + swell**1.5)
    foam = coloured_noise(rng, n, rate, 800, rng.uniform(4000, 12000), 0.3) * (0.03 + late**3)
    return roar + rng.uniform(0.5, 1.5) * foam


SOUNDS = {
    "birdsong": _birdsong,
    "car_horn": _car_horn,
    "dog_bark": _dog_bark,
    "engine": _engine,
    "footsteps": _footsteps,
    "hammering": _hammering,
    "jackhammer": _jackhammer,
    "rain": _rain,
    "siren": _siren,
    "surf": _surf,
}
CLASSES = tuple(SOUNDS)  # classID order
