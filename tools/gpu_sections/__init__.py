"""The sections of tools/gpu_check.py. Each function gets a `common.Setup` and writes its lines as they come."""
