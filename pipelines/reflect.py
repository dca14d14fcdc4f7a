"""The far end of a throughput test: counts the test traffic and sends it back out of the same device.

TX exchanges the Ethernet addresses, so the generator gets its frames back.  RFC 2544 test traffic is UDP to
198.18.0.0/15.

    xdpkit run pipelines/reflect.py -i eth1
"""

from xdpkit import PASS, TX, Pipeline, ip, udp

pipe = Pipeline("reflect", default=PASS)
pipe.rule(ip.dst.within("198.18.0.0/15") & udp.present, TX, name="test-traffic")
