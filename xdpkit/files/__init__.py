"""Captures on disk: the formats pcap and pcapng, read with an error that names what is damaged, and pcapng written.
Bytes in,
bytes out: it imports nothing of xdpkit, and knows no pipeline."""
