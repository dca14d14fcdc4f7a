/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The walk into tunnels, for XDP. */
#include "xdp_source.h"
#include "tunnel.h"
