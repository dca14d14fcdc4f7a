/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The same for packets of several buffers. */
#define FRAGS
#include "xdp_beside.bpf.c"
