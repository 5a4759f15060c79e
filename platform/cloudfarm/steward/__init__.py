"""The one control loop: observe, decide (pure), act; fenced by an epoch in the store."""
