/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The socket filter where rules are tried beside those that act. */
#define BESIDE
#include "socket.bpf.c"
