"""Ask a tier in its container how it is: `python health.py PORT [PATH]`; status 0 if well.

The image has no curl. Proxies that the environment names are not asked.
"""

from __future__ import annotations

import http.client
import sys

port, path = int(sys.argv[1]), (sys.argv[2:] or ["/v1/health"])[0]
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.5)
try:
    connection.request("GET", path)
    status = connection.getresponse().status
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"{path}: {error}")
if status != 200:
    sys.exit(f"{path}: {status}")
