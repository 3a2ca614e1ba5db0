"""MMRL and MMRL++ written the plain way: the readable definition that the fast path is compared with."""
