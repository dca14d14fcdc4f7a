"""Facts about network devices and namespaces, read and set through netlink and ethtool (pyroute2): names, queues, MTU,
features, NAPI, which CPU a queue belongs to.  It imports nothing of xdpkit."""
