/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* XDP for packets of several buffers. */
#define FRAGS
#include "xdp.bpf.c"
