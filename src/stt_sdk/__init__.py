"""Client for the stt-cascade services."""

from stt_sdk._version import __version__

__all__ = ["__version__"]
