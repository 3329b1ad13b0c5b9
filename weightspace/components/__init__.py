"""Classes found by name, user packages, and the records from which components are made again."""
