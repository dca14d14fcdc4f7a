"""Copies of traffic for tcpdump or Wireshark, while every packet goes its way; each tells what became of the packet.

xdpkit run pipelines/tap.py -i eth1 --copies - | tcpdump -nr -
"""

from xdpkit import PASS, Mirror, Pipeline, icmp, sample, tcp, udp

pipe = Pipeline("tap", default=PASS)
pipe.rule((udp.dport == 53) | (udp.sport == 53), Mirror(), name="dns")
pipe.rule(tcp.syn | tcp.fin | tcp.rst, Mirror(128), name="connections")
pipe.rule(icmp, Mirror(128), name="icmp")
pipe.rule(sample(1000), Mirror(128), name="one-in-a-thousand")
