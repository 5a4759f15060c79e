"""What the thin Serve applications call: models behind a plain `handle(payload)`."""
