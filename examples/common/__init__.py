"""What the examples share: data sets, and what scripts do with arguments and results."""
