"""WAV files: made of arrays, and how long those of others are."""

from __future__ import annotations

import numbers
import struct
from typing import Any

# What a sample array is, to those who do not import NumPy: anything that shows its memory, or, as
# tensors do, makes an array that does.
Samples = Any

MAX_CHANNELS = 8
MAX_SAMPLE_RATE = 1_000_000
# WAV's format tags and sample widths by the letters that arrays use. C has no fixed widths: what
# `l` is depends on the machine.
_FORMS = {"B": (1, 8), "h": (1, 16), "i": (1, 32), "l": (1, 32), "f": (3, 32), "d": (3, 64)}
# Sizes that a writer leaves behind which did not know them.
_UNKNOWN = (0, 0xFFFF_FFFF)


def wav(samples: Samples, sample_rate: int) -> bytes:
    """A WAV file of an array, whose numbers are taken as they are.

    Args:
        samples: shape (n,) or (n, channels), at most 8 of them; float32 or float64 in [-1, 1],
            int16, int32 or uint8.
        sample_rate: Hz.

    Raises:
        TypeError: it is no array, or of other numbers.
        ValueError: another shape, or an impossible rate.
    """
    view = _memory(samples)
    tag, bits = _FORMS.get(view.format.removeprefix("<"), (0, 0))
    if bits != 8 * view.itemsize:
        raise TypeError(
            f"samples of the type {view.format!r} with {view.itemsize} bytes cannot be sent; "
            "allowed are float32, float64, int16, int32 and uint8 in the machine's byte order"
        )
    shape = view.shape or ()
    channels = shape[1] if len(shape) == 2 else 1
    if len(shape) not in (1, 2) or not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(
            f"an array of the shape {shape} is no clip; "
            f"allowed are (n,) and (n, channels) with up to {MAX_CHANNELS} channels"
        )
    frame, rate = channels * bits // 8, _rate(sample_rate)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, rate * frame, frame, bits)
    if view.nbytes > 0xFFFF_FFFF - len(form) - 12:
        raise ValueError(f"{view.nbytes} bytes of samples are more than a WAV file can hold")
    head = struct.pack("<4sI4s", b"RIFF", 4 + len(form) + 8 + view.nbytes, b"WAVE")
    return b"".join((head, form, struct.pack("<4sI", b"data", view.nbytes), view.tobytes()))


def seconds_of(head: bytes, size: int) -> float | None:
    """Seconds of audio in a WAV file; None: it is none, or does not say.

    Args:
        head: its first bytes.
        size: of the file, bytes.
    """
    form = head.find(b"fmt ")
    if head[:4] not in (b"RIFF", b"RF64") or form < 0:
        return None
    bytes_a_second = int.from_bytes(head[form + 16 : form + 20], "little")
    if not bytes_a_second:
        return None
    begin = head.find(b"data", form) + 8
    if begin < 8:  # further back
        return size / bytes_a_second
    announced = int.from_bytes(head[begin - 4 : begin], "little")
    there = max(0, size - begin)
    return (there if announced in _UNKNOWN else min(there, announced)) / bytes_a_second


def _memory(samples: Samples) -> memoryview:
    if isinstance(samples, (bytes, bytearray)):
        raise TypeError(
            "bytes do not say what samples they are; make an array of them, such as by "
            "np.frombuffer(samples, np.int16)"
        )
    try:
        return memoryview(samples)
    except (TypeError, ValueError, BufferError) as error:
        if callable(as_array := getattr(samples, "__array__", None)):
            array = as_array()
            if array is not samples:  # NumPy's own that shows no memory, such as one of dates
                return _memory(array)
        raise TypeError(
            f"{type(samples).__name__} is no array of samples; "
            "first comes the array, then its sample rate"
        ) from error


def _rate(value: Any) -> int:
    known = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not known or not 1 <= value <= MAX_SAMPLE_RATE or value != int(value):
        raise ValueError(
            f"the sample rate must be a whole number of Hz, 1 to {MAX_SAMPLE_RATE}, not {value!r}"
        )
    return int(value)
