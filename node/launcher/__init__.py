"""The launcher: starts, supervises and stops the processes of one network."""
