"""What a farm is: quantities, leases, jobs, tenants, placement, the ledger. Standard library only, no I/O."""
