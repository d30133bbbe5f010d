"""Generated from proto/crescendo/v1 by `make proto`; do not edit."""
