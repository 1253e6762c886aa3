"""`make runbooks`: every page of docs/runbooks, tried out.

It starts real tiers, as `make faults` does, and a real Prometheus with the alert rules of
`deploy/prometheus` in seconds instead of minutes. Each row makes the fault of its page, sees what
the page says, does what it says, and sees the fault gone. The commands, queries and settings are
the page's own: they are read from it and run.
"""
