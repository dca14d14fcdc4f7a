"""A pipeline on a device: how it is attached and changed while packets flow, its sockets and sets, its ledger,
and
what happens around it.  This is where the parts below come together; it imports them all, but no command and no
report."""
