"""`make faults`: what the service promises under overload, faults and hostile input, tried out.

It starts real tiers, processes as `stt up` runs them, with an engine that takes a fixed time
(`stub.py`), and does to them what each row of `rows.py` says.
"""
