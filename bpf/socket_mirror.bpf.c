/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Copies of packets that go on, and events, for the socket filter. */
#include "skb_source.h"
#include "skb_copy.h"
#include "mirror.h"
