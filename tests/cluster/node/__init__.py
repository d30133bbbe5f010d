"""Tests on one real node: a package, so that pytest ends the node before the tests of other folders begin."""
