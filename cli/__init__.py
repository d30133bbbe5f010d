"""The `crescendo` command: thin; what it shows comes from the controller, what it changes goes through it."""
