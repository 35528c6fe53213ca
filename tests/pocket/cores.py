"""Imported before torch: what lets it share two cores. Memory that is freed stays with the process (page faults cost more
than the arithmetic), and threads that wait for each other sleep instead of spinning."""
import ctypes
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("KMP_BLOCKTIME", "0")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
_libc = ctypes.CDLL(None)
for _option, _value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 1 << 28)):
    if not _libc.mallopt(_option, _value):
        raise OSError(f"mallopt({_option}, {_value}) was refused")
