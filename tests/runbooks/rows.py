"""All rows, in the order of the pages' index."""

from __future__ import annotations

from runbooks import crowds, escalation, machines, tasks, watching
from runbooks.shift import Row

ROWS: tuple[Row, ...] = (
    *machines.ROWS,
    *watching.ROWS,
    *escalation.ROWS,
    *crowds.ROWS,
    *tasks.ROWS,
)
