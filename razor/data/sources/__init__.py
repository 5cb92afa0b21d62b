"""Where documents come from: one class per origin."""
