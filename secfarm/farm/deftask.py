"""`@deftask`: a function that can also be sent. What task/deftask.py records, with `submit` on the current kernel."""

from __future__ import annotations
