"""The systemd unit of a firewall."""

from __future__ import annotations

import shlex

__all__ = ["unit"]

_UNIT = """\
# Written by 'xdpkit firewall install'; it writes the same again.
[Unit]
Description=xdpkit firewall {name}
# before the network is up, so that no packet comes in before the rules
After=network-pre.target {device_units}
Wants=network-pre.target
BindsTo={device_units}
Before=network.target

[Service]
Type=notify
ExecStartPre=/bin/mkdir -p /run/xdpkit /var/lib/xdpkit
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
# the rules stay in force while it is stopped or restarts; 'xdpkit firewall detach {name}' takes them off
Restart=on-failure
RestartSec=1
WatchdogSec=60
TimeoutStartSec=180

# loading programs, attaching them, and opening maps by their ids
CapabilityBoundingSet=CAP_BPF CAP_NET_ADMIN CAP_PERFMON CAP_SYS_ADMIN
NoNewPrivileges=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service bpf perf_event_open
SystemCallFilter=~@clock @cpu-emulation @debug @module @mount @obsolete @raw-io @reboot @swap
MemoryMax=1G
CPUQuota=100%
LimitMEMLOCK=infinity
ProtectSystem=strict
ReadWritePaths=/sys/fs/bpf /run/xdpkit /var/lib/xdpkit
ProtectHome=read-only
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
PrivateTmp=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_XDP
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def unit(command: list[str], name: str, devices: list[str]) -> str:
    """The text of the unit that runs ``command`` for the firewall ``name`` on ``devices``."""
    words = " ".join(shlex.quote(word).replace("%", "%%") for word in command)
    return _UNIT.format(command=words, name=name, device_units=" ".join(map(_device_unit, devices)))


def _device_unit(device: str) -> str:
    escaped = "".join(c if c.isalnum() or c in "_." else f"\\x{ord(c):02x}" for c in device)
    return f"sys-subsystem-net-devices-{escaped}.device"
