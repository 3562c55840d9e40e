"""Turn waveform segments into log-Mel images, exactly as librosa defines them."""

import numpy as np

SAMPLE_RATE = 16_000  # Hz
SEGMENT_SAMPLES = 8_000  # 0.5 s
N_FFT = 400  # samples: a window of 25 ms
HOP_LENGTH = 160  # samples: 10 ms
N_MELS = 64
MEL_FRAMES = 1 + SEGMENT_SAMPLES // HOP_LENGTH  # 51, the windows being centred on their hop
AMIN = 1e-10  # power below which the dB scale stops, at -100 dB
DELTA_WIDTH = 9  # frames of the local slope


def cut_segments(waveform: np.ndarray, starts_seconds: np.ndarray) -> np.ndarray:
    """Cut half-second pieces out of a waveform, with zeros beyond its end.

    Args:
        waveform: float32 [samples], mono, 16 kHz.
        starts_seconds: [S] start of each piece in seconds, not negative; rounded to the nearest sample.

    Returns:
        float32 [S, 8000].
    """
    starts = np.rint(np.asarray(starts_seconds, dtype=np.float64) * SAMPLE_RATE).astype(np.int64)
    if len(starts) == 0 or starts.min() < 0:
        raise ValueError(f"starts_seconds: expected one or more starts of at least 0 s, got {starts_seconds!r}")
    padded = np.zeros(max(len(waveform), starts.max() + SEGMENT_SAMPLES), dtype=np.float32)
    padded[: len(waveform)] = waveform
    return np.lib.stride_tricks.sliding_window_view(padded, SEGMENT_SAMPLES)[starts]


def segment_logmel(waveform: np.ndarray, starts_seconds: np.ndarray) -> np.ndarray:
    """Compute log-Mel images of half-second segments, with their first and second deltas.

    `librosa.feature.melspectrogram(n_fft=400, hop_length=160, n_mels=64)` with its defaults (Hann window, centred,
    Slaney filters, power 2), `librosa.power_to_db(ref=1, amin=1e-10, top_db=None)`, `librosa.feature.delta(width=9)`.
    Nothing is scaled per clip: loudness carries emotion.

    Args:
        waveform: float32 [samples], mono, 16 kHz, full scale ±1.
        starts_seconds: [S] start of each segment in seconds; what lies beyond the waveform is zero.

    Returns:
        float16 [S, 3, 64, 51]: log-Mel in dB, delta and second delta in dB per frame; then mel band, time.
    """
    import librosa  # loads numba and scipy: only once a spectrogram is asked for

    mel = librosa.feature.melspectrogram(
        y=cut_segments(waveform, starts_seconds), sr=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP_LENGTH, n_mels=N_MELS
    )  # [S, 64, 51]
    decibels = librosa.power_to_db(mel, ref=1.0, amin=AMIN, top_db=None)
    deltas = [librosa.feature.delta(decibels, width=DELTA_WIDTH, order=order) for order in (1, 2)]
    return np.stack([decibels, *deltas], axis=1).astype(np.float16)
