"""Simulations: the farm's decisions, and published schedulers, on a clock that jumps from event to event."""
