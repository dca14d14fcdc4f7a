/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/*
 * Complete the TCP or UDP checksum of a packet whose sender left that to its device.  The `count` parts are the packet's
 * bytes; the headers must lie in the first.  1 if it was completed, 0 if the packet stays as it is.
 */
int xk_complete_checksum(const struct iovec *parts, uint32_t count);
