/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#define FRAGS
#include "xdp_mirror.bpf.c"
