"""Replay of golden folders, format by format; `methods/` has what single methods need. The program is `tools/check_golden.py`."""
