/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Complete the checksum that the sender of the packet left to its device, if it did (checksum.bpf.c). */
#pragma once
#include <linux/bpf.h>

int complete_checksum(struct xdp_md *ctx);
