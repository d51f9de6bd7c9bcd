"""What is known of models and data sets by name: data in YAML, and the strict readers of it."""
