"""The sandbox: runs programs that a model wrote. What it guarantees and what it cannot stop: docs/security.md."""
