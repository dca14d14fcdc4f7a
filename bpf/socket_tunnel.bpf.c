/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The walk into tunnels, for the socket filter. */
#include "skb_source.h"
#include "tunnel.h"
