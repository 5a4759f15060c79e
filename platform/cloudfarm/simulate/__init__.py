"""The farm's own scheduler on recorded and generated work: what is measured here is what runs."""
