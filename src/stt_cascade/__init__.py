"""Self-hosted speech-to-text in two tiers: the services behind `stt_primary` and `stt_fallback`."""

import os

# OpenMP's threads wait for their next piece of work by spinning. Beside another busy process (the
# other tier on the same box) they spin away the very cores that the work needs. The library reads
# this once, when it is loaded, which is after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# NumPy computes the log-mel alone, in a few milliseconds; threads of its own for that get in the
# way of the inferences, which have all cores already.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# The runtime of the speech detection would else tell its makers how it is used, and keep an
# identifier of this machine in the user's cache.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# CUDA else numbers GPUs by their speed, and NVML by their slots: the GPU in use would not be the
# one whose gauges are read.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
