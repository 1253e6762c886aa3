"""What an operator sees: metrics, logs, GPU gauges."""
