"""Facts about network devices and namespaces, read and set through netlink and ethtool (pyroute2): names, queues, MTU,
features, NAPI, which CPU a queue belongs to.  Of xdpkit it imports ``lazy`` alone.

``import pyroute2`` runs all of it (its databases, Plan 9, asyncio), of which questions about devices need little."""

from ..lazy import put_in_place

put_in_place("pyroute2", parts=True)
put_in_place("pyroute2.ethtool", parts=True)
