"""Shipped fakes: a manual clock, an in-memory store, hosts with faults; and what must hold of every farm."""
