"""What people can do with the farm, one module a subject: plain functions over ports, without HTTP.

Every function takes what it needs (store, clock, settings, ...) and the principal who asks (``access``),
checks the role and the ownership itself, writes records and ``target`` only (never a ``status``), and returns
domain objects. Another tenant's thing is answered exactly as a missing one.
"""
