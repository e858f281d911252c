// SPDX-License-Identifier: GPL-2.0
/* An object cannot be part of two modules. */
#include "../../sys/ao.c"
#include "../../sys/helpers.c"

#include <linux/netdevice.h>
#include <linux/umh.h>
#include <net/tcp.h>

#include "helpers.h"

/* TCP sockets of this kernel, bound or not. Both families count together. */
unsigned int kccm_kunit_tcp_sockets(void)
{
	return percpu_counter_sum_positive(tcp_prot.sockets_allocated);
}

/* How often the current task has gone to sleep of its own accord. */
unsigned long kccm_kunit_sleeps(void)
{
	return current->nvcsw;
}

/* Whether a task is in a killable wait, as only KCCM's own waits are here. */
bool kccm_kunit_waits(struct task_struct *task)
{
	return READ_ONCE(task->__state) == TASK_KILLABLE;
}

/* Whether what the current task allocates does not wait for I/O. */
bool kccm_kunit_noio(void)
{
	return current->flags & PF_MEMALLOC_NOIO;
}

/* Have user space do what it alone can: 0, a status as of wait(), or an error. */
int kccm_kunit_shell(const char *script)
{
	char *argv[] = { "/bin/sh", "-c", (char *)script, NULL };
	char *envp[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL };

	return call_usermodehelper(argv[0], argv, envp, UMH_WAIT_PROC);
}

/* The network namespace with a device of that name, with a reference, or NULL. */
struct net *kccm_kunit_net_of(const char *device)
{
	struct net *net, *found = NULL;

	rcu_read_lock();
	for_each_net_rcu(net) {
		if (dev_get_by_name_rcu(net, device)) {
			found = maybe_get_net(net);
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

/* How many network namespaces there are. */
unsigned int kccm_kunit_namespaces(void)
{
	unsigned int count = 0;
	struct net *net;

	rcu_read_lock();
	for_each_net_rcu(net)
		count++;
	rcu_read_unlock();
	return count;
}
