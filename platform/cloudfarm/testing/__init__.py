"""Shipped fakes: a manual clock, an in-memory store, hosts with faults; and the invariants that every test may check."""
