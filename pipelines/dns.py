"""Capture DNS: every query and answer goes to user space, everything else passes untouched.

REDIRECT takes a packet from the host.  While nothing drains (or after a crash) the packets pass to the stack.

    xdpkit run pipelines/dns.py -i eth1 -w dns.pcapng
"""

from xdpkit import PASS, REDIRECT, Pipeline, tcp, udp

pipe = Pipeline("dns", default=PASS)
pipe.rule((udp.dport == 53) | (udp.sport == 53), REDIRECT, name="dns-udp")
pipe.rule((tcp.dport == 53) | (tcp.sport == 53), REDIRECT, name="dns-tcp")
