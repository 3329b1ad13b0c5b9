"""Families of the tests' own, of kinds that the library has none of; `--allow_import tests.trial_members` adds them."""
