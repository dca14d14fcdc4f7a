"""xdpkit: declare a packet filter pipeline in Python, run it at XDP, drain what it redirects without copying."""
