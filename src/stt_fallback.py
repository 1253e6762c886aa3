"""ASGI app of the fallback: `CONFIG_PATH=stt_fallback.env uvicorn stt_fallback:app --port 8082`."""

from config_loader import FallbackConfig
from stt_cascade.http.app import app_from_file

app = app_from_file(FallbackConfig)
