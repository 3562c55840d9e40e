"""A synthetic voice that says one of two sentences with an emotion: glottal source, formant filter, noise.

The source is the closed form of the harmonic series sum_k r^k cos(k phase); r = exp(-pitch / cutoff) makes its spectrum
fall as exp(-frequency / cutoff), so that the cutoff plays the part of vocal effort. Formants are second-order
resonances (Klatt 1980), applied frame by frame to the short-time spectrum.
"""

from typing import NamedTuple

import numpy as np

VOICE_RATE = 48_000  # samples a second
WINDOW, HOP = 1024, 256  # samples of one frame of the formant filter, and between frames
TREMOR_HZ = 6.5
SPEECH_DB = -27.0  # dB relative to full scale (rms) of a neutral sentence


class Prosody(NamedTuple):
    """The changes of a neutral voice that an emotion makes; all zero is neutral."""

    pitch: float  # semitones above the speaker's own pitch
    rise: float  # semitones from the first to the last syllable
    melody: float  # semitones, height of the stressed syllables
    tremor: float  # semitones, slow quiver of the pitch
    loudness: float  # dB
    effort: float  # octaves by which the source's cutoff moves: positive is brighter
    breath: float  # noise beside the harmonics, as a part of their amplitude
    rate: float  # octaves: positive is faster
    formants: float  # octaves by which the second formant moves: lips spread (up) or rounded (down)


# Angry and happy sound nearly alike on purpose, and disgust is not far from sad: there the face has to tell.
PROSODIES = {
    #                    pitch  rise melody tremor loud effort breath rate formants
    "happy": Prosody(5.5, 2.0, 4.0, 0.0, 5.0, 0.60, 0.00, 0.12, 0.12),
    "sad": Prosody(-1.0, -2.0, -1.0, 0.3, -10.0, -1.10, 0.20, -0.40, 0.00),
    "angry": Prosody(4.0, -1.0, 4.0, 0.0, 9.0, 1.10, 0.00, 0.15, 0.00),
    "fearful": Prosody(8.0, 0.5, 0.0, 1.6, -3.0, -0.10, 0.90, 0.45, 0.00),
    "disgust": Prosody(-6.0, -3.0, 0.0, 0.0, 0.0, 0.20, 0.00, -0.15, -0.25),
    "surprised": Prosody(6.0, 11.0, 1.0, 0.0, 1.0, -0.40, 0.60, -0.20, 0.00),
}
PROSODY_JITTER = Prosody(0.7, 0.7, 0.5, 0.1, 0.8, 0.10, 0.03, 0.05, 0.02)  # deviation between takes of one emotion

# First three formants in Hz (Peterson and Barney 1952, men).
VOWELS = {
    "i": (270, 2290, 3010),
    "I": (390, 1990, 2550),
    "a": (730, 1090, 2440),
    "o": (570, 840, 2410),
    "e": (500, 1500, 2500),
}
SPOKEN_VOWELS = ("Ieoiaeo", "oeIIaeo")  # the vowels of RAVDESS's two: kids are talking, dogs are sitting, by the door
STRESSED = np.array([1.0, 0.2, 0.8, 0.2, 0.3, 0.0, 1.0])  # by syllable


class Speaker(NamedTuple):
    """The features of a voice, the same in all its clips."""

    pitch: float  # Hz
    formants: float  # scale of every formant: the length of the vocal tract
    loudness: float  # dB
    effort: float  # octaves
    rate: float  # octaves


def draw_speaker(rng):
    """Draw a random `Speaker`."""
    high = rng.random() < 0.5  # about half the voices are women's
    return Speaker(
        pitch=(190.0 if high else 120.0) * 2 ** rng.normal(0, 0.08),
        formants=(1.09 if high else 1.0) * 2 ** rng.normal(0, 0.03),
        loudness=rng.normal(0, 1.0),
        effort=rng.normal(0, 0.1),
        rate=rng.normal(0, 0.1),
    )


def speak(rng, speaker, emotion, clarity, statement, duration):
    """Speak one sentence.

    Args:
        rng: a numpy Generator.
        speaker: from `draw_speaker`.
        emotion: a key of `PROSODIES`.
        clarity: 0 (neutral) to about 1.
        statement: 0 or 1.
        duration: seconds.

    Returns:
        The waveform, float32 [samples] at `VOICE_RATE` within -1 to 1, and how far the mouth is open for speaking,
        float64 [samples] from 0 to 1.
    """
    prosody = Prosody(*(clarity * np.array(PROSODIES[emotion]) + rng.normal(size=len(PROSODY_JITTER)) * PROSODY_JITTER))
    samples = round(duration * VOICE_RATE)
    seconds = np.arange(samples) / VOICE_RATE
    sentence = SPOKEN_VOWELS[statement]
    span = min(1.55 * 2.0 ** -(prosody.rate + speaker.rate), duration - 0.2)
    start = rng.uniform(0.08, max(duration - span - 0.08, 0.09))
    syllable = span / len(sentence)
    centres = start + syllable * (np.arange(len(sentence)) + 0.5 + rng.uniform(-0.12, 0.12, len(sentence)))

    opening = np.zeros(samples)
    for centre, stress in zip(centres, STRESSED, strict=True):
        lobe = np.clip((seconds - centre) / (0.62 * syllable), -1, 1)
        opening = np.maximum(opening, (0.7 + 0.3 * stress) * 0.5 * (1 + np.cos(np.pi * lobe)))

    progress = np.clip((seconds - start) / span, 0, 1)
    semitones = prosody.pitch + prosody.rise * (progress - 0.4) - 2.0 * progress  # every voice sinks a little
    semitones = semitones + (1.5 + prosody.melody) * np.interp(seconds, centres, STRESSED - STRESSED.mean())
    semitones += prosody.tremor * np.sin(2 * np.pi * TREMOR_HZ * seconds + rng.uniform(0, 2 * np.pi))
    pitch = np.clip(speaker.pitch * 2 ** (semitones / 12), 60, 600)  # Hz, [samples]
    voice = _source(rng, pitch, prosody, speaker) * opening
    formants = np.array([VOWELS[vowel] for vowel in sentence], float) * speaker.formants  # [syllable, 3]
    formants[:, 1] *= 2.0**prosody.formants
    voice = _filter(voice, centres, formants) + 0.05 * _consonants(rng, seconds, centres - 0.5 * syllable)

    level = SPEECH_DB + speaker.loudness + prosody.loudness + rng.normal(0, 0.7)
    voice *= 10 ** (level / 20) / np.sqrt(np.mean(voice**2))
    voice += _background(rng, seconds)
    return np.tanh(voice).astype(np.float32), opening


def _source(rng, pitch, prosody, speaker):
    """Return glottal harmonics with breath noise; `pitch` in Hz [samples]."""
    cutoff = 1500.0 * 2.0 ** (prosody.effort + speaker.effort)  # Hz
    pole = np.exp(-pitch / cutoff)
    cosine = np.cos(np.cumsum(2 * np.pi * pitch / VOICE_RATE) + rng.uniform(0, 2 * np.pi))
    harmonics = (1 - pole * cosine) / (1 - 2 * pole * cosine + pole**2) - 1
    return harmonics + max(prosody.breath + 0.05, 0.0) * rng.normal(size=pitch.size)


def _filter(source, centres, formants):
    """Filter `source` [samples] by resonances that glide between `formants` [syllable, 3] at `centres` (seconds)."""
    padded = np.pad(source, (WINDOW, WINDOW + -source.size % HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW + 1)[:-1]
    times = (np.arange(len(frames)) * HOP - WINDOW / 2) / VOICE_RATE  # of each frame's middle
    hertz = np.fft.rfftfreq(WINDOW, 1 / VOICE_RATE)
    gain = np.ones((len(frames), hertz.size))
    for number in range(formants.shape[1]):
        centre = np.interp(times, centres, formants[:, number])[:, None]
        bandwidth = 70.0 + 40.0 * number
        gain *= centre**2 / np.hypot(hertz**2 - centre**2, bandwidth * hertz)
    frames = np.fft.irfft(np.fft.rfft(frames) * gain, WINDOW)
    parts = WINDOW // HOP
    joined = np.zeros((len(frames) + parts - 1, HOP))
    for part in range(parts):
        joined[part : part + len(frames)] += frames[:, part * HOP : (part + 1) * HOP]
    return joined.ravel()[WINDOW : WINDOW + source.size] / (parts / 2)


def _consonants(rng, seconds, onsets):
    """Return short bursts of noise at the syllables' `onsets` (seconds)."""
    bursts = sum(
        np.exp(-(((seconds - onset) / 0.015) ** 2)) * strength
        for onset, strength in zip(onsets, rng.uniform(0.3, 1.0, len(onsets)), strict=True)
    )
    return bursts * np.diff(rng.normal(size=seconds.size + 1))  # the difference tilts white noise upwards


def _background(rng, seconds):
    """Return room noise with a spectrum between white and brown, and mains hum, of random levels."""
    spectrum = np.fft.rfft(rng.normal(size=seconds.size))
    spectrum *= np.maximum(np.arange(spectrum.size), 20.0) ** -rng.uniform(0.4, 0.7)
    noise = np.fft.irfft(spectrum, seconds.size)
    noise *= 10 ** (rng.uniform(-60, -54) / 20) / np.sqrt(np.mean(noise**2))
    return noise + 10 ** (rng.uniform(-80, -62) / 20) * np.sin(2 * np.pi * 50 * seconds + rng.uniform(0, 6))
