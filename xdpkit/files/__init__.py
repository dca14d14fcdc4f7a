"""Captures on disk: this room reads pcap and pcapng, with errors that name what is damaged, and writes pcapng.  It
knows no pipeline, and imports nothing of xdpkit."""
