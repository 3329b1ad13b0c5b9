"""Ways to run a family over time, one file each."""
