/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* XDP where rules are tried beside those that act. */
#define BESIDE
#include "xdp.bpf.c"
