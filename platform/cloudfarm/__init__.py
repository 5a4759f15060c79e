"""Cloudfarm: one Ray cluster, many tenants; a lease is a Ray node."""
