"""Self-hosted speech-to-text in two tiers: the services behind `stt_primary` and `stt_fallback`."""
