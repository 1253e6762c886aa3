"""The settings of both tiers, read from the `.env` file that `CONFIG_PATH` names."""

from stt_cascade.config import ConfigError, FallbackConfig, PrimaryConfig
from stt_cascade.config_file import load

__all__ = ["ConfigError", "FallbackConfig", "PrimaryConfig", "load"]
