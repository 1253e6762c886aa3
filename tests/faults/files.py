"""Hostile files, made by hand: hours of silence in kilobytes, and what names other files."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream

# The longest block that FLAC has.
_BLOCK = 65535
_RATE_CODES = {8000: 4, 16000: 5}
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def playlists(secret: Path) -> dict[str, bytes]:
    """Text files that FFmpeg takes for media, all of which name the file `secret`."""
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 40404 RTP/AVP 0\n"
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period>'
        f"<AdaptationSet><Representation id='1' bandwidth='1'><BaseURL>{secret.as_uri()}</BaseURL>"
        "</Representation></AdaptationSet></Period></MPD>"
    )
    m3u8 = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret.as_uri()}\n#EXT-X-ENDLIST\n"
    texts = {
        "relative.ffconcat": f"ffconcat version 1.0\nfile {secret.name}\n",
        "absolute.ffconcat": f"ffconcat version 1.0\nfile {secret}\n",
        "session.sdp": sdp,
        "list.m3u8": m3u8,
        "manifest.mpd": mpd,
    }
    return {name: text.encode() for name, text in texts.items()}


def one_hertz_wav() -> bytes:
    """1,044 bytes that claim 1 Hz: 1,000 samples would be 1,000 s."""
    header = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 1, 1, 1, 8)
    data = struct.pack("<4sI", b"data", 1000) + bytes(1000)
    return struct.pack("<4sI4s", b"RIFF", 4 + len(header) + len(data), b"WAVE") + header + data


def long_flac(seconds: int, rate: int = 16_000) -> bytes:
    """Silence: constant blocks, of a dozen bytes each."""
    return _flac(rate, seconds * rate // _BLOCK + 1)


def odd_rate_flac() -> bytes:
    """The highest sampling rate that FLAC's header can say."""
    return _flac(655_350, 20)


def _flac(rate: int, blocks: int) -> bytes:
    # Sampling rate in 20 bits, channels - 1 in 3, bits a sample - 1 in 5, samples in 36.
    packed = (rate << 44) | (15 << 36) | (blocks * _BLOCK)
    info = struct.pack(">HHxxxxxxQ", _BLOCK, _BLOCK, packed) + bytes(16)
    frames = (_flac_frame(number, rate) for number in range(blocks))
    return b"fLaC" + b"\x80" + len(info).to_bytes(3, "big") + info + b"".join(frames)


def _flac_frame(number: int, rate: int) -> bytes:
    # 0 as the rate's code: as in the stream's header. Mono, 16 bits.
    head = b"\xff\xf8" + bytes([0x70 | _RATE_CODES.get(rate, 0), 0x08])
    head += _utf8(number) + struct.pack(">H", _BLOCK - 1)
    frame = head + bytes([_crc(head, 8, 0x07)]) + b"\x00" + bytes(2)  # one constant subframe: 0
    return frame + struct.pack(">H", _crc(frame, 16, 0x8005))


def _utf8(number: int) -> bytes:
    return chr(number).encode("utf-8", "surrogatepass")


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    crc, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        crc ^= byte << (bits - 8)
        for _ in range(8):
            crc = ((crc << 1) ^ (polynomial if crc & top else 0)) & mask
    return crc


def tiny_frames(seconds: float = 2.0, rate: int = 16_000) -> bytes:
    """Silence in Matroska, 16 bytes of file for each frame of one sample."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=rate, layout="mono")
        assert isinstance(stream, AudioStream)
        for number in range(round(seconds * rate)):
            packet = av.Packet(bytes(2))
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base = Fraction(1, rate)
            output.mux(packet)
    return buffer.getvalue()


def long_opus(seconds: int) -> bytes:
    """Silence in Ogg Opus: packets of 120 ms."""
    # Six frames of 20 ms of silence at a constant rate, mono.
    packet = b"\xfb\x06" + b"\xff\xfe" * 6
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48_000, 0, 0)
    tags = b"OpusTags" + struct.pack("<I4sI", 4, b"stub", 0)
    pages = [_ogg_page([head], 0, 0, 2), _ogg_page([tags], 0, 1, 0)]
    packets = round(seconds / 0.12)
    for first in range(0, packets, 255):
        count = min(255, packets - first)
        granule = (first + count) * 5760  # samples at 48 kHz
        pages.append(_ogg_page([packet] * count, granule, len(pages), 0))
    return b"".join(pages)


def _ogg_page(packets: list[bytes], granule: int, number: int, flags: int) -> bytes:
    sizes = bytes(len(packet) for packet in packets)
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, 1, number, 0, len(sizes))
    page = head + sizes + b"".join(packets)
    return page[:22] + struct.pack("<I", _ogg_crc(page)) + page[26:]


def _ogg_crc(page: bytes) -> int:
    # zlib's CRC-32 with the bits the other way round, and without its inversions.
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
