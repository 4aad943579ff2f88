"""Experiments: one runnable module for each procedure, configured by the files in `configs/`."""
