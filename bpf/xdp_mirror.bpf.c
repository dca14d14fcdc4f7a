/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Copies of packets that go on, and events, for XDP. */
#include "xdp_source.h"
#include "xdp_copy.h"
#include "mirror.h"
