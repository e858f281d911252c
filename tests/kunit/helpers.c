// SPDX-License-Identifier: GPL-2.0
/* An object cannot be part of two modules. */
#include "../../sys/helpers.c"

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
