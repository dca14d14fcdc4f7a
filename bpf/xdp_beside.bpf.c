/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* XDP that keeps what the walk found in a map: for rules tried beside those that act, and for many of many headers. */
#define BESIDE
#include "xdp.bpf.c"
