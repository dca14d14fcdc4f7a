"""What a pipeline is: rules, conditions, actions, headers and fields, sets and limits as declarations, tcpdump
strings, and the checks that find rules which cannot be meant as written.  All of these are values: they do no I/O, and
they know no kernel, no device and no capture format.  This room imports nothing else of xdpkit; it loads libpcap to
compile tcpdump strings."""
