"""What a pipeline is: rules, conditions, actions, headers and fields, sets and limits as declarations, tcpdump
strings, and the checks that find what cannot be meant.  Values without I/O; nothing here knows a kernel, a device or a
file format of packets.  It imports only what lives here (and libpcap, to compile tcpdump strings)."""
