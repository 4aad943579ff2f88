"""Experiments: one runnable module for each procedure, configured by the files in `configs/`."""

from lepton_jax.core.extras import import_extra

import_extra("tyro", "experiments")
