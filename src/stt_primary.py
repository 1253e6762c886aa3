"""ASGI app of the primary: `CONFIG_PATH=stt_primary.env uvicorn stt_primary:app --port 8081`."""

from config_loader import PrimaryConfig
from stt_cascade.http.app import app_from_file

app = app_from_file(PrimaryConfig)
