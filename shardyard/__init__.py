"""The kernel: what every room may import, and nothing that does I/O. docs/layout.md names each module in one line."""
