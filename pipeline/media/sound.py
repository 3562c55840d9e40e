"""Put the decoded sound of a file on a clip's clock, or say why the clip has none."""

from pathlib import Path

import numpy as np

from .ffmpeg import DecodedStreams, Listing
from .logmel import SAMPLE_RATE, cut_segments
from .parse import decoder_failed, error_of, first_error

SILENCE = 2.0**-16  # amplitude: half a step of 16-bit sound, what rounds to digital silence
LOUDEST = 1e15  # amplitude, where 1 is full scale: beyond it the power of a window is no float32
AUDIO_TOLERANCE = 0.1  # seconds by which sound may end before its packets do (encoders pad their last one)
PIECE_JITTER = 0.005  # seconds by which a piece of sound may start early or late and still join the one before it
ADVICE = "`--channels first` takes the first one"
FAINT = 1 / 32  # of the loudest channel's amplitude: 30 dB below it


def undecodable(kind: str, listing: Listing, decoded: DecodedStreams, path: Path) -> str:
    """Return why a file gave no `"video"` or no `"audio"`."""
    if kind in listing.unusable:
        return listing.unusable[kind]
    if kind not in listing.streams:
        return f"no {kind} stream"
    return f"the {kind} does not decode: {first_error(decoded.log, path, listing.streams[kind].codec) or 'no output'}"


def take_sound(
    path: Path, listing: Listing, decoded: DecodedStreams, zero: float, duration: float, starts: np.ndarray, end: float
) -> tuple[np.ndarray | None, str]:
    """Return a clip's waveform and what is wrong with it, if anything.

    Args:
        path: the file.
        listing: its packets.
        decoded: its sound.
        zero: the clip's time 0 on the file's clock, in seconds.
        duration: T, in seconds.
        starts: float64 [30] of the clip's segments, in seconds.
        end: seconds up to which the sound must be there, if the file has it.

    Returns:
        float32 [round(16000 T)], mono, 16 kHz, from time 0 to T, zeros where there is no sound; or None where the
        sound is missing. A cause, or nothing.
    """
    if fault := _fault(path, listing, decoded, zero, end):
        return None, fault
    waveform = _on_the_clock(decoded, decoded.samples, zero, duration)
    peaks = _on_the_clock(decoded, decoded.peaks, zero, duration) if len(decoded.peaks) else waveform
    loudest, peak = (float(np.abs(cut_segments(each, starts)).max()) for each in (waveform, peaks))
    most = float(np.abs(waveform).max(initial=0))  # between segments too, which encoders of waveforms hear
    if not np.isfinite(most):
        return None, "the audio holds samples that are not finite numbers"
    if most > LOUDEST:
        return None, f"the audio is no sound: samples up to {most:.3g}, where 1 is full scale"
    if loudest < SILENCE:
        silent = "the audio is digital silence"
        return None, silent if peak < SILENCE else f"its channels cancel each other out: {ADVICE}"
    if loudest < FAINT * peak:
        below = 20 * np.log10(peak / loudest)
        return waveform, f"its channels nearly cancel each other out, {below:.0f} dB below the loudest: {ADVICE}"
    why = error_of(decoded.log, path, "audio", listing.streams["audio"].codec, listing.bridged)
    return waveform, why and f"the sound may be damaged: {why}"


def _fault(path: Path, listing: Listing, decoded: DecodedStreams, zero: float, end: float) -> str | None:
    if not len(decoded.audio_times):
        return undecodable("audio", listing, decoded, path)
    packets = listing.streams["audio"]
    why = first_error(decoded.log, path, packets.codec) or "the file is truncated"
    expected = min(max(packets.ends.max(), listing.promised or 0.0) - zero, end)
    ends = decoded.audio_ends
    tolerance = max(AUDIO_TOLERANCE, (packets.ends - packets.times).max())
    if ends.max() - zero < expected - tolerance:
        return f"the audio stops at {ends.max() - zero:.2f} s of {expected:.2f} s: {why}"
    if decoder_failed(decoded.log, "audio"):
        holes = ends[:-1][decoded.audio_times[1:] - ends[:-1] > PIECE_JITTER] - zero
        if len(holes) and holes[0] < expected:
            return f"the audio fails at {holes[0]:.2f} s of {expected:.2f} s: {why}"
    return None


def _on_the_clock(decoded: DecodedStreams, samples: np.ndarray, zero: float, duration: float) -> np.ndarray:
    """Return samples from time 0 to T, float32 [round(16000 T)]; silence where the timestamps leave a gap."""
    waveform = np.zeros(round(duration * SAMPLE_RATE), np.float32)
    heard = np.concatenate([[0], np.cumsum(decoded.audio_counts)])  # samples before each piece
    drift = decoded.audio_times - heard[:-1] / SAMPLE_RATE
    first = 0
    for index in range(1, len(drift) + 1):
        if index < len(drift) and abs(drift[index] - drift[first]) <= PIECE_JITTER:
            continue
        at = round((decoded.audio_times[first] - zero) * SAMPLE_RATE)
        piece = samples[heard[first] : heard[index]][: max(len(waveform) - at, 0)]
        waveform[at : at + len(piece)] = piece
        first = index
    return waveform
