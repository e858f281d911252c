/* SPDX-License-Identifier: GPL-2.0 */
/* What only the tests want of the kernel. bindgen reads this file; see Kbuild. */
#ifndef _KCCM_KUNIT_HELPERS_H
#define _KCCM_KUNIT_HELPERS_H

#include <linux/types.h>

struct net;
struct task_struct;

unsigned int kccm_kunit_tcp_sockets(void);
unsigned long kccm_kunit_sleeps(void);
bool kccm_kunit_waits(struct task_struct *task);
bool kccm_kunit_noio(void);

int kccm_kunit_shell(const char *script);
struct net *kccm_kunit_net_of(const char *device);
unsigned int kccm_kunit_namespaces(void);

#endif /* _KCCM_KUNIT_HELPERS_H */
