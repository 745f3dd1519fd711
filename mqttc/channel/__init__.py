"""The control socket: a running broker answers questions of its own user on this machine; see docs/operations.md.

`protocol` is what both sides know, `client` the asking side of the command line, `server` the control thread's.
"""
