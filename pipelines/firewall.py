"""A small firewall: what is not wanted is dropped before the stack sees it; management always gets through.

xdpkit run pipelines/firewall.py -i eth1
"""

from xdpkit import DROP, PASS, Pipeline, arp, icmp, icmp6, ip, ip6, tcp, udp

MANAGEMENT = "192.0.2.0/28"

pipe = Pipeline("firewall", default=DROP)
pipe.rule(arp.present | icmp6.present, PASS, name="neighbours")
pipe.rule(tcp.dport.isin([22]) & ip.src.within(MANAGEMENT), PASS, name="management")
pipe.rule(ip.src.within("10.0.0.0/8", "172.16.0.0/12", "203.0.113.0/24"), DROP, name="bogons")
pipe.rule(icmp.type.isin([0, 3, 8, 11]), PASS, name="ping")
pipe.rule(tcp.dport.isin([80, 443]), PASS, name="web")
pipe.rule(tcp.flags.between(0x10, 0xFF) & (tcp.dport >= 1024), PASS, name="replies")
pipe.rule((udp.sport == 53) | (udp.sport == 123), PASS, name="dns-and-time")
pipe.rule(ip6.present, DROP, name="no-ipv6")
