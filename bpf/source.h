/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The packet behind the context of the hook that is compiled for (see HOOKS in setup.py). */
#pragma once
#ifdef XDP
#include "xdp_source.h"
#else
#include "skb_source.h"
#endif
