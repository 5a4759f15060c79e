"""Measurements of the farm against stock Ray, each a ratio from one run on one machine: ``make bench``."""
