"""Synthetic urban sounds in UrbanSound8K's layout, so that every recipe runs before any dataset is downloaded.

    python -m datasets.demo data/demo --seed 2022 --clips_per_class 40

Ten kinds of sound, each a small physical model with random pitch, rate and timbre, "recorded" with random placement,
echo, equalisation, background, level, clipping and file format. The recording conditions are as strong as the classes:
the average spectrum of a clip says little, what happens in time says more. A clip is a pure function of (seed, class,
number), so a larger set contains the smaller one.

Shapes: n = samples of a clip, c = channels.
"""

import argparse
import csv
import io
import json
import os
import shutil
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter

from datasets import us8k
from utils.io.errors import InputError

FOLDS = 10
COLUMNS = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
RATES = {16000: 0.4, 22050: 0.3, 44100: 0.2, 48000: 0.1}  # Hz: share of the clips
SUBTYPES = {"PCM_16": 0.88, "PCM_24": 0.12}
STEREO = 0.12  # share of the clips
FOREGROUND = 0.6  # share of the clips whose sound stands out (salience 1); the others' lie in the background (2)
SNR = {1: (15.0, 35.0), 2: (5.0, 15.0)}  # dB, by salience
VERSION = 2  # raise it when a change here changes the audio


# ---------------------------------------------------------------- building blocks


def _filter(x, rate, gain):
    """Apply a zero-phase filter given as a function of frequency in Hz; x: [n] -> [n]."""
    size = next_fast_len(len(x) + rate // 10, real=True)  # 0.1 s of padding keeps the end from wrapping onto the start
    return irfft(rfft(x, size) * gain(np.fft.rfftfreq(size, 1 / rate)), size)[: len(x)]


def _band(low, high, colour=0.0):
    """Gain of a band-pass with soft edges (Hz) and a tilt: power falls as 1 / f ** colour."""

    def gain(f):
        f = np.maximum(f, 1.0)
        below, above = (low / f) ** 2, (f / high) ** 2
        return (f / 1000) ** (-colour / 2) / np.sqrt((1 + below**2) * (1 + above**2))

    return gain


def _formants(centres, width):
    """Gain with a bump at each of the `centres` (Hz), `width` octaves wide, over a floor of -26 dB."""

    def gain(f):
        octaves = np.log2(np.maximum(f, 1.0)[:, None] / np.asarray(centres))
        return 0.05 + np.exp(-0.5 * (octaves / width) ** 2).sum(axis=1)

    return gain


def _noise(rng, n, rate, low=20.0, high=20000.0, colour=0.0):
    """Coloured noise of unit RMS, [n]; drawn as a spectrum, which saves one transform."""
    size = next_fast_len(n, real=True)
    freqs = np.fft.rfftfreq(size, 1 / rate)
    spectrum = rng.standard_normal(2 * len(freqs)).view(complex) * _band(low, high, colour)(freqs)
    x = irfft(spectrum, size)[:n]
    return x / (np.sqrt(np.mean(x**2)) + 1e-9)


def _tone(freq, amps, rate, phase=0.0):
    """Harmonic tone that follows `freq` (Hz, [n]); harmonics that would alias are left out.

    One cycle is tabulated and read at the running phase: the cost doesn't grow with the number of harmonics.
    """
    amps = np.asarray(amps)[: max(1, int(0.45 * rate / freq.max()))]
    cycle = np.arange(2048) / 2048
    order = np.arange(1, len(amps) + 1)
    table = (amps[:, None] * np.sin(2 * np.pi * order[:, None] * (cycle + 0.31 * order[:, None] ** 2))).sum(axis=0)
    turns = np.cumsum(freq) / rate + phase
    return table[(turns * 2048).astype(np.int64) % 2048]


def _spans(rng, n, rate, on, off):
    """Alternate sound and pause, both of uniform random length (s): list of (start, stop) samples, one at least."""
    spans, start = [], 0
    while start < n:
        stop = start + max(16, int(rng.uniform(*on) * rate))
        spans.append((start, min(stop, n)))
        start = stop + int(rng.uniform(*off) * rate)
    return [span for span in spans if span[1] - span[0] >= 16]


def _pulses(rng, n, rate, per_second, jitter):
    """Impulse train [n] of random strength; `jitter` is the standard deviation of a gap, relative to the gap."""
    gaps = np.maximum(0.15, 1 + jitter * rng.standard_normal(int(n / rate * per_second * 3) + 8)) / per_second
    at = ((np.cumsum(gaps) - gaps[0] * rng.uniform(0.3, 1)) * rate).astype(np.int64)
    at = at[at < n]
    train = np.zeros(n)
    np.add.at(train, at, rng.uniform(0.6, 1.0, len(at)))
    return train


def _decay(train, rate, seconds):
    """Every impulse of `train` starts an exponential decay that falls to 1/e in `seconds`, [n]."""
    return lfilter([1.0], [1.0, -np.exp(-1 / (seconds * rate))], train)


def _ring(train, rate, freqs, seconds, amps):
    """Every impulse of `train` strikes damped modes (Hz, seconds to 1/e, amplitude), [n]."""
    y = np.zeros(len(train))
    for freq, tau, amp in zip(freqs, seconds, amps, strict=True):
        if freq < 0.45 * rate:
            r, w = np.exp(-1 / (tau * rate)), 2 * np.pi * freq / rate
            y += amp * lfilter([0.0, r * np.sin(w)], [1.0, -2 * r * np.cos(w), r * r], train)
    return y


def _gate(n, rate, rise, fall):
    """Envelope that opens over `rise` and closes over `fall` seconds, [n]."""
    t = np.arange(n) / rate
    return np.clip(t / rise, 0, 1) * np.clip((t[-1] - t) / fall, 0, 1)


def _delay(x, samples):
    """Shift later in time, zeros first, [n] -> [n]."""
    return np.concatenate([np.zeros(samples, x.dtype), x])[: len(x)]


def _wander(rng, n, rate, every):
    """Smooth random curve in about -1..1 with a new value each `every` seconds, [n]."""
    knots = rng.uniform(-1, 1, int(n / rate / every) + 3)
    return np.interp(np.arange(n) / rate / every + rng.uniform(), np.arange(len(knots)), knots)


def _log_uniform(rng, low, high, size=None):
    """Draw with an equal chance per octave."""
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


# ---------------------------------------------------------------- the sounds: (rng, n, rate) -> [n]


def _birdsong(rng, n, rate):
    """Phrases of one to three syllables, each a short glide or trill, repeated with gaps."""
    base, out = _log_uniform(rng, 1100, 4500), np.zeros(n)
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
    """One to several honks of two steady reeds a third or so apart."""
    low, interval = _log_uniform(rng, 230, 620), rng.choice([1.0, 1.19, 1.26, 1.34])
    amps = np.arange(1, 25) ** -rng.uniform(0.3, 1.3) * rng.uniform(0.3, 1, 24)
    long = rng.choice([0.2, 0.5, 2.0])
    out = np.zeros(n)
    for start, stop in _spans(rng, n, rate, (0.5 * long, 1.5 * long), (0.05, 0.6)):
        bend = 1 - 0.03 * np.exp(-np.arange(stop - start) / (0.03 * rate))  # the reed takes a moment to reach its pitch
        reeds = sum(_tone(low * ratio * bend, amps, rate, rng.uniform()) for ratio in (1.0, interval * 1.003))
        out[start:stop] = reeds * _gate(stop - start, rate, 0.015, 0.04)
    return out


def _dog_bark(rng, n, rate):
    """Separate hoarse voiced bursts whose pitch rises and falls, through a fixed mouth."""
    pitch, length = _log_uniform(rng, 180, 900), rng.uniform(0.07, 0.22)
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
    return _filter(out, rate, _formants(mouth, rng.uniform(0.3, 0.6)))


def _engine(rng, n, rate):
    """Idling: firing pulses at a slowly wandering rate, uneven between cylinders, with exhaust noise in step."""
    firing = _log_uniform(rng, 14, 55) * 2 ** (rng.uniform(0, 0.25) * _wander(rng, n, rate, rng.uniform(0.3, 1.5)))
    amps = np.exp(-np.arange(120) / rng.uniform(8, 40)) * rng.uniform(0.2, 1, 120)
    hum = _tone(firing / 2, amps, rate)  # half the firing rate: two strokes that differ
    pulse = (0.5 + 0.5 * np.cos(2 * np.pi * np.cumsum(firing) / rate)) ** rng.uniform(1, 6)
    hiss = _noise(rng, n, rate, 200, rng.uniform(1500, 7000), 0.5) * (0.15 + pulse)
    return hum / hum.std() + rng.uniform(0.4, 2.0) * hiss


def _footsteps(rng, n, rate):
    """Heel then toe, two feet that differ a little, on a soft or a gritty floor."""
    steps = _pulses(rng, n, rate, rng.uniform(1.4, 3.2), 0.05)
    toe = _delay(steps, int(rng.uniform(0.05, 0.12) * rate)) * rng.uniform(0.3, 0.9)
    thud = _log_uniform(rng, 80, 400)
    heel_noise = _noise(rng, n, rate, thud, thud * rng.uniform(3, 20), 0.5)
    toe_noise = _noise(rng, n, rate, 3 * thud, thud * rng.uniform(10, 60), 0.0)
    if rng.uniform() < 0.5:  # gravel: the noise itself comes in grains
        toe_noise = toe_noise * np.minimum(_decay(_pulses(rng, n, rate, 150, 0.6), rate, 0.002), 2)
    heel = heel_noise * _decay(steps, rate, rng.uniform(0.012, 0.04))
    return heel + rng.uniform(0.4, 1.2) * toe_noise * _decay(toe, rate, rng.uniform(0.02, 0.06))


def _hammering(rng, n, rate):
    """Blows on wood or metal: a click and a handful of damped modes, sometimes with a bounce."""
    blows = _pulses(rng, n, rate, rng.uniform(1.4, 4.5), rng.uniform(0.02, 0.12))
    if rng.uniform() < 0.4:
        blows += _delay(blows, int(rng.uniform(0.06, 0.12) * rate)) * rng.uniform(0.2, 0.5)
    modes = _log_uniform(rng, 150, 900) * np.cumprod(np.r_[1, rng.uniform(1.3, 2.1, 6)])
    tau = _log_uniform(rng, 0.012, 0.15) * (modes / modes[0]) ** -0.4
    body = _ring(blows, rate, modes, tau, rng.uniform(0.2, 1, 7))
    click = _noise(rng, n, rate, 500, 9000) * _decay(blows, rate, rng.uniform(0.002, 0.01))
    return body + rng.uniform(0.3, 1.0) * click


def _jackhammer(rng, n, rate):
    """Hard regular blows at 9 to 28 a second, in bursts, with the rattle of the chisel."""
    blows = _pulses(rng, n, rate, _log_uniform(rng, 9, 28), 0.02)
    on = np.zeros(n)
    for start, stop in _spans(rng, n, rate, (0.5, 3.0), (0.1, 0.5)):
        on[start:stop] = 1
    blows *= on
    low = _log_uniform(rng, 100, 800)
    rattle = _noise(rng, n, rate, low, low * rng.uniform(8, 40), rng.uniform(0, 1))
    rattle *= _decay(blows, rate, rng.uniform(0.006, 0.03))
    modes = _log_uniform(rng, 150, 3000, 4)
    steel = _ring(blows, rate, modes, np.full(4, rng.uniform(0.004, 0.02)), rng.uniform(0.1, 0.6, 4))
    return rattle + rng.uniform(0.2, 1.0) * steel


def _rain(rng, n, rate):
    """A hiss of many far drops and single near ones, each a short click that may ring."""
    hiss = _noise(rng, n, rate, _log_uniform(rng, 100, 800), rng.uniform(3000, 12000), rng.uniform(-0.3, 1.0))
    out = rng.uniform(0.1, 0.6) * hiss
    for _ in range(3):  # three sizes of drop or surface struck
        drops = _pulses(rng, n, rate, _log_uniform(rng, 8, 80), 0.7) ** 3
        freq = _log_uniform(rng, 500, 6000)
        out += 3 * _ring(drops, rate, [freq, 1.7 * freq], [rng.uniform(0.001, 0.006)] * 2, rng.uniform(0.3, 1.5, 2))
    return out


def _siren(rng, n, rate):
    """Wail (slow sweep), yelp (fast sweep) or two alternating tones, with harmonics of a horn speaker."""
    low, octaves = _log_uniform(rng, 350, 900), rng.uniform(0.35, 1.3)
    kind = rng.choice(3)
    cycles = _log_uniform(rng, *[(0.2, 0.6), (1.5, 4.0), (0.7, 1.8)][kind]) * np.arange(n) / rate + rng.uniform()
    saw = cycles % 1
    shape = [0.5 - 0.5 * np.cos(2 * np.pi * cycles), np.minimum(saw / 0.7, (1 - saw) / 0.3), (saw < 0.5) * 0.6][kind]
    amps = np.arange(1, 13) ** -rng.uniform(0.8, 2.0) * rng.uniform(0.3, 1, 12)
    return _tone(low * 2 ** (octaves * shape), amps, rate)


def _surf(rng, n, rate):
    """Noise that swells and breaks: the low roar comes first, the foam follows and dies away slowly."""
    waves = np.arange(n) / rate / rng.uniform(1.2, 3.0) + rng.uniform()
    peak = rng.uniform(0.3, 0.6)
    swell, late = (np.interp(phase % 1, [0, peak, 1], [0, 1, 0]) for phase in (waves, waves - 0.15))
    roar = _noise(rng, n, rate, 40, rng.uniform(400, 1500), 1.0) * (0.1 + swell**1.5)
    foam = _noise(rng, n, rate, 800, rng.uniform(4000, 12000), 0.3) * (0.03 + late**3)
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


# ---------------------------------------------------------------- the recording


def _level(x, rate):
    """RMS of the loudest fifth of the 20 ms frames, so that the pauses between sparse events don't count."""
    size = rate // 50
    power = np.sort((x[: len(x) // size * size].reshape(-1, size) ** 2).mean(axis=1))
    return np.sqrt(power[-max(1, len(power) // 5) :].mean()) + 1e-9


def _echo(rng, x, rate):
    """Add a room: noise that decays with a random reverberation time, [n] -> [n]."""
    reach = rng.uniform(0.05, 0.5)  # seconds to -60 dB
    tail = rng.standard_normal(int(reach * rate)) * 10 ** (-3 * np.linspace(0, 1, int(reach * rate)))
    tail *= rng.uniform(0, 0.9) / np.sqrt((tail**2).sum())
    tail[0] += 1
    size = next_fast_len(len(x) + len(tail), real=True)
    return irfft(rfft(x, size) * rfft(tail, size), size)[: len(x)]


def _equaliser(rng, strength=9.0):
    """Random microphone and distance: a smooth curve over eight bands (dB), a high-pass and a low-pass."""
    bands = np.log2(np.geomspace(60, 12000, 8))
    curve = strength * rng.standard_normal(8)
    edges = _band(_log_uniform(rng, 20, 300), _log_uniform(rng, 2500, 16000))
    return lambda f: 10 ** (np.interp(np.log2(np.maximum(f, 1.0)), bands, curve) / 20) * edges(f)


def _background(rng, n, rate, class_name):
    """Street noise of random colour that comes and goes, at times with another class far away, [n] of unit level."""
    noise = _noise(rng, n, rate, 30, 20000, rng.uniform(0, 2)) * 2 ** _wander(rng, n, rate, 0.7)
    noise /= _level(noise, rate)
    if rng.uniform() < 0.3:
        other = rng.choice([name for name in CLASSES if name != class_name])
        far = SOUNDS[other](rng, n, rate)
        noise += rng.uniform(0.2, 0.6) * far / _level(far, rate)
    return noise / _level(noise, rate)


def _scene(rng, n, rate, class_name):
    """The sound in its place: it lasts 60 to 100 % of the clip, begins anywhere, in a room and at a distance, [n]."""
    active = int(n * rng.uniform(0.6, 1.0))
    onset = rng.integers(0, n - active + 1)
    gate = _gate(active, rate, *_log_uniform(rng, 0.005, 0.4, 2))
    sound = np.zeros(n)
    sound[onset : onset + active] = SOUNDS[class_name](rng, active, rate) * gate
    return _filter(_echo(rng, sound, rate), rate, _equaliser(rng))


def synthesise(class_name, rng, sample_rate=16000, duration=4.0, salience=1):
    """Make one recording of a sound class.

    Parameters
    ----------
    class_name : str
        One of `CLASSES`.
    rng : numpy.random.Generator
        All randomness; the same state gives the same samples.
    sample_rate : int
        Hz.
    duration : float
        Seconds.
    salience : int
        1: the sound stands out, 2: it lies in the background.

    Returns
    -------
    numpy.ndarray
        float32 [n], n = duration * sample_rate, within -1..1, never silent.

    Raises
    ------
    InputError
        If `class_name` is not one of `CLASSES`.
    """
    if class_name not in SOUNDS:
        raise InputError(f"No sound class {class_name!r}: choose from {', '.join(CLASSES)}.")
    n = int(duration * sample_rate)
    sound = _scene(rng, n, sample_rate, class_name)
    background = _background(rng, n, sample_rate, class_name)
    mix = sound / _level(sound, sample_rate) + background * 10 ** (-rng.uniform(*SNR[salience]) / 20)
    mix = _filter(mix, sample_rate, _equaliser(rng, strength=3.0))  # the microphone hears both
    mix /= np.abs(mix).max()
    if rng.uniform() < 0.15:  # overdriven input
        mix = np.clip(mix * rng.uniform(1.5, 4.0), -1, 1)
    return (mix * 0.99 * _log_uniform(rng, 0.03, 1.0)).astype(np.float32)


# ---------------------------------------------------------------- the files


def _write_clip(folder, seed, class_id, number, max_duration):
    """Draw clip `number` of a class, write its file, and return its row of the metadata table."""
    rng = np.random.default_rng([seed, class_id, number])
    rate = int(rng.choice(list(RATES), p=list(RATES.values())))
    subtype = str(rng.choice(list(SUBTYPES), p=list(SUBTYPES.values())))
    stereo = rng.uniform() < STEREO
    salience = 1 if rng.uniform() < FOREGROUND else 2
    duration = rng.uniform(0.375, 1.0) * max_duration
    start = round(rng.uniform(0, 60), 6)  # where in its long recording the clip would lie
    audio = synthesise(CLASSES[class_id], rng, rate, duration, salience)  # [n]
    if stereo:  # the second microphone stands up to 30 cm away
        second = _delay(audio, rng.integers(0, rate // 1000)) * np.float32(rng.uniform(0.5, 1))
        audio = np.stack([audio, second], axis=1)  # [n, c]
    fs_id, fold = 100000 * (class_id + 1) + number, number % FOLDS + 1
    name = f"{fs_id}-{class_id}-0-{rng.integers(0, 20)}.wav"
    wav = io.BytesIO()  # a file's own error says that the disk is full; soundfile's says "System error"
    soundfile.write(wav, audio, rate, subtype=subtype, format="WAV")
    (folder / "audio" / f"fold{fold}" / name).write_bytes(wav.getbuffer())
    return (name, fs_id, start, round(start + len(audio) / rate, 6), salience, fold, class_id, CLASSES[class_id])


def _write_set(folder, parameters):
    """Write all clips, the metadata table and, last, the note of the parameters that says the set is complete."""
    for fold in range(1, FOLDS + 1):
        (folder / "audio" / f"fold{fold}").mkdir(parents=True)
    (folder / "metadata").mkdir()
    clips = [(class_id, number) for class_id in range(len(CLASSES)) for number in range(parameters["clips_per_class"])]

    def write(clip):
        return _write_clip(folder, parameters["seed"], *clip, parameters["max_duration"])

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # transforms and writing free Python's lock
        rows = list(pool.map(write, clips))
    with open(folder / "metadata" / "UrbanSound8K.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *sorted(rows)])
    (folder / "metadata" / "demo.json").write_text(json.dumps(parameters))


def _is_complete(folder, parameters):
    """Whether the set is there already; a folder that holds anything else is an InputError."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    note = folder / "metadata" / "demo.json"
    try:
        found = json.loads(note.read_text()) if note.is_file() else None
    except (OSError, ValueError, RecursionError):
        found = None
    if found == parameters:
        return True
    what = f"a demo set of {found}" if found else "something that is not a demo set"
    raise InputError(f"{folder} holds {what}, wanted {parameters}: delete it or give another folder.")


def _write_atomically(folder, parameters):
    """Write the set beside `folder`, then rename it; a hidden `.part` folder is all that a killed run can leave."""
    part = folder.absolute().with_name(f".{folder.absolute().name}.part-{uuid.uuid4().hex[:8]}")
    try:
        _write_set(part, parameters)
        try:
            os.replace(part, folder)
        except OSError:  # another process was faster; its set is as good if the parameters agree
            if not _is_complete(folder, parameters):
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def generate(folder, seed=2022, clips_per_class=40, max_duration=4.0):
    """Write the demo set, unless it is there already.

    A set is complete or absent, whenever the program dies and however many start at once.

    Parameters
    ----------
    folder : str or Path
        Where `audio/` and `metadata/` go; must be new, empty, or a demo set of the same parameters.
    seed : int
        Non-negative; another seed, other clips.
    clips_per_class : int
        At least 10, so that every class is in every fold.
    max_duration : float
        Longest clip in seconds; lengths are uniform from 0.375 of it.

    Returns
    -------
    pathlib.Path
        `folder`.

    Raises
    ------
    InputError
        If a parameter is out of range or `folder` holds anything else.
    """
    if clips_per_class < FOLDS or not 0.2 <= max_duration <= 60 or seed < 0:
        raise InputError(
            f"Got seed={seed}, clips_per_class={clips_per_class}, max_duration={max_duration}: "
            f"give a seed >= 0, clips_per_class >= {FOLDS} (one a fold) and max_duration from 0.2 to 60 seconds."
        )
    folder = Path(folder)
    sizes = {"clips_per_class": clips_per_class, "max_duration": float(max_duration)}
    parameters = {"seed": seed, **sizes, "version": VERSION}
    if _is_complete(folder, parameters):
        return folder
    try:
        _write_atomically(folder, parameters)
    except OSError as error:
        if error.errno is None:  # not the disk's
            raise
        raise InputError(
            f"{folder} can't be written ({error.strerror}): free space there, or give another folder."
        ) from error
    return folder


def load(data_folder):
    """Read the demo set as `datasets.us8k.load` does, and generate it first where it is missing.

    Parameters
    ----------
    data_folder : str
        Where the set is, or will be.

    Returns
    -------
    rows : pandas.DataFrame
    classes : list of str
        See `datasets.us8k.load`.
    """
    rows, classes = us8k.load(generate(data_folder))
    rows.attrs["source"] = "demo"
    return rows, classes


def main():
    """Command line: write a set and say in one line what it is."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.demo", description="Write synthetic urban sounds in UrbanSound8K's layout."
    )
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=2022)
    parser.add_argument("--clips_per_class", type=int, default=40)
    args = parser.parse_args()
    try:
        folder = generate(args.folder, args.seed, args.clips_per_class)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    files = list(folder.glob("audio/fold*/*.wav"))
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{folder}: {len(files)} clips, {size:.0f} MB, {FOLDS} folds, {len(CLASSES)} classes: {', '.join(CLASSES)}")


if __name__ == "__main__":
    main()
