"""What the thin jobs call: data sets, models, training loops and model bundles."""
