"""AF_XDP beside every other path of packets, measured on this machine: ``xdpkit bench paths`` (docs/performance.md).

site: where and what a path is.  receive, send, forwarding, echo, tools: the paths.  traffic: the sender.  measure: what
a run costs.  run: all of them by turns.  sample, verdict: figures (pure).  report, page: how they are shown.
"""
