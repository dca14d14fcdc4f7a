"""Floods are cut to a rate, and who keeps flooding is shut out for a while: IPv4 and IPv6 alike.

xdpkit run pipelines/floods.py -i eth1
"""

from xdpkit import DROP, PASS, Pipeline, icmp, icmp6, limit, log, src, tcp, udp

pipe = Pipeline("floods", default=PASS)
banned = pipe.set("banned", src, intervals=False, timeouts=True)
pipe.rule(banned, DROP, name="banned")
pipe.rule(
    tcp.syn & ~tcp.ack & ~limit("1000/second", per=src),
    log("1/second"), banned.add(timeout=60), DROP,
    name="syn-flood",
)  # fmt: skip
pipe.rule((icmp | (icmp6.type == 128)) & ~limit("100/second"), DROP, name="ping-flood")
pipe.rule(udp & ~limit("20 mbytes/second", per=src), DROP, name="udp-flood")
