// SPDX-License-Identifier: GPL-2.0
/* What a cluster of KCCM's takes, as it grows. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/err.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <net/proto_memory.h>
#include <net/tcp.h>

#include "bench.h"

/* With fewer nodes the kernel's own use of memory is more than theirs. */
#define FEWEST_FOR_MEMORY	32
#define IDLE_MS			1000
#define IDLE_LOOKS		3

/* Bytes in use that are not in sockets' buffers. */
static s64 memory_used(void)
{
	struct sysinfo info;

	si_meminfo(&info);
	return (s64)(info.totalram - info.freeram -
		     proto_memory_allocated(&tcp_prot)) * PAGE_SIZE;
}

/*
 * How much of the time the CPUs are at work while nothing is asked of them: the
 * median of some whiles, as what was asked before may have to settle.
 */
static u64 idle_ppm(void)
{
	u64 looks[IDLE_LOOKS];
	struct bench_cost cost;
	int i;

	for (i = 0; i < IDLE_LOOKS; i++) {
		bench_cost_begin(&cost);
		msleep(IDLE_MS);
		bench_cost_end(&cost);
		looks[i] = mul_u64_u64_div_u64(bench_cost_cpu_ns(&cost),
					       1000000, cost.wall_ns);
	}
	bench_sort(looks, IDLE_LOOKS);
	return looks[IDLE_LOOKS / 2];
}

/* What so many nodes take that are not connected goes to @used. */
static int memory_alone(unsigned int count, s64 *used)
{
	struct kccm_bench_nodes *nodes;
	s64 before = memory_used();

	nodes = kccm_bench_alone(count);
	if (IS_ERR(nodes))
		return PTR_ERR(nodes);
	*used = memory_used() - before;
	kccm_bench_stop(nodes);
	return 0;
}

int bench_scale(const struct bench_request *rq, struct bench_answer *answer)
{
	unsigned int count = rq->nodes, conns = count * (count - 1) / 2;
	u64 begin, ns, before_ppm, after_ppm;
	struct kccm_bench_nodes *nodes;
	s64 before, used, alone;
	int ret;

	if (count < 2)
		return -EINVAL;
	ret = memory_alone(count, &alone);
	if (ret)
		return ret;
	before_ppm = idle_ppm();
	before = memory_used();
	begin = ktime_get_ns();
	nodes = kccm_bench_cluster(count);
	ns = ktime_get_ns() - begin;
	if (IS_ERR(nodes))
		return PTR_ERR(nodes);
	after_ppm = idle_ppm();
	used = memory_used() - before;
	kccm_bench_stop(nodes);
	bench_say(answer, "connect_ms=%llu.%03llu",
		  div_u64(ns, NSEC_PER_MSEC),
		  div_u64(ns % NSEC_PER_MSEC, NSEC_PER_USEC));
	if (count >= FEWEST_FOR_MEMORY && alone >= 0 && used >= alone)
		bench_say(answer, " bytes_per_node=%lld bytes_per_conn=%lld",
			  div_s64(alone, count), div_s64(used - alone, conns));
	/* More than without them; 0 where that was more, which it can be by chance. */
	bench_say(answer, " idle_cpu_ppm=%llu",
		  after_ppm > before_ppm ? after_ppm - before_ppm : 0);
	return 0;
}
