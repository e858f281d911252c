/* SPDX-License-Identifier: GPL-2.0 */
/* What only the tests want of the kernel. bindgen reads this file; see Kbuild. */
#ifndef _KCCM_KUNIT_HELPERS_H
#define _KCCM_KUNIT_HELPERS_H

#include <linux/types.h>

struct task_struct;

unsigned int kccm_kunit_tcp_sockets(void);
unsigned long kccm_kunit_sleeps(void);
bool kccm_kunit_waits(struct task_struct *task);

#endif /* _KCCM_KUNIT_HELPERS_H */
