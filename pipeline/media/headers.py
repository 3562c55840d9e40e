"""Read the headers of clips for what ffmpeg does not tell: encrypted tracks, and bytes that are lacking at the end."""

import re
from pathlib import Path

MAX_BOXES, MAX_INDEX = 1000, 64 << 20  # top-level boxes of an mp4 before its index, bytes of the index
ENCRYPTED = {  # sample descriptions of an mp4's encrypted tracks
    "video": re.compile(rb"stsd.{12}(?:encv|drmi)", re.DOTALL),
    "audio": re.compile(rb"stsd.{12}(?:enca|drms)", re.DOTALL),
}
UNKNOWN_SIZE = 2**31 - 2**16  # bytes: a wav written into a pipe says that it is almost 2**31 or 2**32 bytes long
INFO_FRAME = re.compile(rb"(?:Xing|Info)\0\0\0[\x02\x03\x06\x07\x0a\x0b\x0e\x0f]")  # of an mp3 that states its bytes


def encrypted_kinds(path: Path) -> set[str]:
    """Return which of an mp4's `video` and `audio` its index calls encrypted, which ffmpeg would decode to noise."""
    at, end = 0, path.stat().st_size
    with path.open("rb") as file:
        for _ in range(MAX_BOXES):
            file.seek(at)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            if size == 1:  # a 64-bit size follows
                size = int.from_bytes(head[8:], "big")
            size = size or end - at  # 0: to the end of the file
            if head[4:8] == b"moov":
                index = head + file.read(min(size, MAX_INDEX))
                return {kind for kind, entry in ENCRYPTED.items() if entry.search(index)}
            at += size
            if size < 8 or at >= end:
                break
    return set()


def riff_end(path: Path) -> float | None:
    """Return the end in seconds that the header of a cut avi or wav tells; ffmpeg would adjust it to what is there."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] != b"RIFF" or len(head) < 64 or int.from_bytes(head[4:8], "little") + 8 <= path.stat().st_size:
        return None
    if head[8:12] == b"AVI " and head[24:28] == b"avih":
        microseconds, frames = (int.from_bytes(head[at : at + 4], "little") for at in (32, 48))
        return microseconds * frames / 1e6 or None
    data = head.find(b"data", 12)
    if head[8:16] == b"WAVEfmt " and data > 0:
        size, rate = (int.from_bytes(head[at : at + 4], "little") for at in (data + 4, 28))
        if size % 2**31 > UNKNOWN_SIZE:
            return None
        return size / rate if rate else None
    return None


def is_cut_mp3(path: Path) -> bool:
    """Return whether an mp3 holds fewer bytes than its first frame says."""
    with path.open("rb") as file:
        head = file.read(10)
        tag = sum((byte & 127) << 7 * place for place, byte in enumerate(reversed(head[6:]))) + 10  # bytes
        start = tag if head[:3] == b"ID3" else 0
        file.seek(start)
        frame = file.read(256)
    stated = INFO_FRAME.search(frame)
    if stated is None or frame[:1] != b"\xff":
        return False
    at = stated.end() + 4 * (frame[stated.end() - 1] & 1)  # after the number of frames
    return start + int.from_bytes(frame[at : at + 4], "big") > path.stat().st_size
