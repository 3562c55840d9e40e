"""Log-Mel images equal librosa's, segment by segment."""

import librosa
import numpy as np
import pytest
from mlemiss.pipeline.media.logmel import MEL_FRAMES, N_MELS, segment_logmel


def voice(seconds):
    time = np.arange(round(16_000 * seconds)) / 16_000
    noise = np.random.default_rng(0).normal(size=len(time))
    return (0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time) * np.exp(-time) + 0.01 * noise).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.046, 0.5, 3.2366])
def test_equals_librosa_segment_by_segment(seconds):
    waveform = voice(seconds)
    starts = np.linspace(0, max(seconds - 0.5, 0), 30)
    images = segment_logmel(waveform, starts)
    assert images.shape == (30, 3, N_MELS, MEL_FRAMES) == (30, 3, 64, 51)
    assert images.dtype == np.float16
    for image, start in zip(images, starts, strict=True):
        first = round(start * 16_000)
        piece = waveform[first : first + 8_000]
        piece = np.pad(piece, (0, 8_000 - len(piece)))
        mel = librosa.feature.melspectrogram(y=piece, sr=16_000, n_fft=400, hop_length=160, n_mels=64)
        decibels = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None)
        expected = [decibels, *(librosa.feature.delta(decibels, width=9, order=order) for order in (1, 2))]
        np.testing.assert_allclose(image, np.stack(expected), rtol=2e-3, atol=2e-3)  # float16


def test_loudness_is_kept():
    waveform = voice(1.0)
    loud, soft = (segment_logmel(gain * waveform, [0.2])[0, 0].astype(np.float32) for gain in (1.0, 0.1))
    audible = soft > -60
    assert audible.any()
    np.testing.assert_allclose((loud - soft)[audible], 20.0, atol=0.1)


def test_silence_stops_at_the_floor():
    image = segment_logmel(np.zeros(100, np.float32), [0.0, 7.0])
    np.testing.assert_array_equal(image[:, 0], -100)
    np.testing.assert_allclose(image[:, 1:], 0, atol=1e-4)


@pytest.mark.parametrize("starts", [[], [-0.1]])
def test_starts_must_lie_on_the_clip(starts):
    with pytest.raises(ValueError, match="starts_seconds"):
        segment_logmel(voice(1.0), starts)
