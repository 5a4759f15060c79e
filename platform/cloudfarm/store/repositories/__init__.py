"""The repositories of :mod:`cloudfarm.ports` over SQL. Each lives in one unit of work."""
