"""The pipeline of ``xdpkit demo``: one rule for each thing that can happen to a packet."""

from xdpkit import DROP, PASS, REDIRECT, Pipeline, ip, tcp, udp

pipe = Pipeline("demo", default=PASS)
pipe.rule(ip.src.within("203.0.113.0/24"), DROP, name="bad-net")
pipe.rule((udp.dport == 53) | (udp.sport == 53), REDIRECT, name="dns")
pipe.rule(tcp.dport.isin([80, 443]), PASS, name="web")
