"""The command ``xdpkit``: options, tables, progress, signals, exit status.  The top of the house: it may import
everything, and
nothing imports it."""
