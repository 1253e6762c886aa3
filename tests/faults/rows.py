"""All rows, in the order in which they run."""

from __future__ import annotations

from faults import (
    bodies,
    ends,
    envoy,
    escalation,
    hostile,
    memory,
    neighbours,
    overload,
    pool,
    soak,
    speech,
)
from faults.report import Row

ROWS: tuple[Row, ...] = (
    *overload.ROWS,
    *hostile.ROWS,
    *neighbours.ROWS,
    *bodies.ROWS,
    *memory.ROWS,
    *escalation.ROWS,
    *ends.ROWS,
    *pool.ROWS,
    *envoy.ROWS,
    *soak.ROWS,
    *speech.ROWS,
)
