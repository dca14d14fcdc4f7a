/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The walk into tunnels, for TC. */
#define DIRECT_ACCESS
#include "skb_source.h"
#include "tunnel.h"
