"""A block list that changes while it works: members come from blocked.txt beside this file, and from anybody's shell.

xdpkit run pipelines/blocklist.py -i eth1
xdpkit set add blocked 203.0.113.7          # from another terminal; the set is pinned
xdpkit set sync blocked feed.txt            # only the difference is applied
"""

from xdpkit import DROP, PASS, Pipeline, ip

pipe = Pipeline("blocklist", default=PASS)
blocked = pipe.set("blocked", ip.src, capacity=1_000_000, source="blocked.txt", pinned=True)
pipe.rule(blocked, DROP, name="blocked")
