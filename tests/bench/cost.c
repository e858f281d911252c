// SPDX-License-Identifier: GPL-2.0
/* What a measurement costs beside time. */
#include <linux/cpumask.h>
#include <linux/errno.h>
#include <linux/kernel_stat.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/tracepoint.h>

#include "bench.h"

static u64 idle_us(void)
{
	u64 sum = 0;
	int cpu;

	for_each_online_cpu(cpu)
		sum += get_cpu_idle_time_us(cpu, NULL) +
		       get_cpu_iowait_time_us(cpu, NULL);
	return sum;
}

void bench_cost_begin(struct bench_cost *cost)
{
	cost->idle_us = idle_us();
	cost->wall_ns = ktime_get_ns();
}

void bench_cost_end(struct bench_cost *cost)
{
	cost->wall_ns = ktime_get_ns() - cost->wall_ns;
	cost->idle_us = idle_us() - cost->idle_us;
}

/*
 * How long all CPUs together were not idle. 0: their clocks do not agree well
 * enough to say.
 */
u64 bench_cost_cpu_ns(const struct bench_cost *cost)
{
	u64 total = cost->wall_ns * num_online_cpus();
	u64 idle = cost->idle_us * NSEC_PER_USEC;

	return total > idle ? total - idle : 0;
}

/*
 * ---- Trace points. They cost something: not while time is measured.
 *
 * What is allocated many at a time is not seen: the slab allocator's objects
 * that the network fills its caches of packets with (kmem_cache_alloc_bulk())
 * and the pages of vmalloc() (alloc_pages_bulk()). Of a page that is given out
 * in parts, as to packets, only the page is. Pages for new slabs are.
 */

#ifdef CONFIG_TRACEPOINTS

enum {
	SWITCHES,
	WAKEUPS,
	ALLOCS,
	PAGES,
	COUNTERS
};

static DEFINE_PER_CPU(u64[COUNTERS], counters);

static void saw_switch(void *data, bool preempt, struct task_struct *prev,
		       struct task_struct *next, unsigned int prev_state)
{
	this_cpu_inc(counters[SWITCHES]);
}

static void saw_wakeup(void *data, struct task_struct *task)
{
	this_cpu_inc(counters[WAKEUPS]);
}

static void saw_kmalloc(void *data, unsigned long call_site, const void *ptr,
			size_t bytes_req, size_t bytes_alloc, gfp_t gfp,
			int node)
{
	this_cpu_inc(counters[ALLOCS]);
}

static void saw_cache_alloc(void *data, unsigned long call_site,
			    const void *ptr, struct kmem_cache *cache,
			    gfp_t gfp, int node)
{
	this_cpu_inc(counters[ALLOCS]);
}

static void saw_page_alloc(void *data, struct page *page, unsigned int order,
			   gfp_t gfp, int migratetype)
{
	this_cpu_inc(counters[PAGES]);
}

static struct {
	const char *name;
	void *probe;
	struct tracepoint *tp;
} probes[] = {
	{ "sched_switch", saw_switch },
	{ "sched_wakeup", saw_wakeup },
	{ "kmalloc", saw_kmalloc },
	{ "kmem_cache_alloc", saw_cache_alloc },
	{ "mm_page_alloc", saw_page_alloc },
};

static bool tracing;

static void find_probes(struct tracepoint *tp, void *unused)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(probes); i++) {
		if (!strcmp(tp->name, probes[i].name))
			probes[i].tp = tp;
	}
}

static void unregister_probes(int count)
{
	while (count--)
		tracepoint_probe_unregister(probes[count].tp,
					    probes[count].probe, NULL);
	tracepoint_synchronize_unregister();
}

/* Count from now on, for one at a time. */
int bench_trace_begin(void)
{
	int cpu, i, ret = 0;

	if (tracing)
		return -EBUSY;
	for_each_kernel_tracepoint(find_probes, NULL);
	for_each_possible_cpu(cpu)
		memset(per_cpu(counters, cpu), 0, sizeof(counters));
	for (i = 0; i < ARRAY_SIZE(probes); i++) {
		ret = probes[i].tp ?
		      tracepoint_probe_register(probes[i].tp, probes[i].probe,
						NULL) : -ENOENT;
		if (ret) {
			unregister_probes(i);
			break;
		}
	}
	tracing = !ret;
	return ret;
}

void bench_trace_end(struct bench_trace *trace)
{
	u64 sums[COUNTERS] = {};
	int cpu, i;

	for_each_possible_cpu(cpu) {
		for (i = 0; i < COUNTERS; i++)
			sums[i] += per_cpu(counters, cpu)[i];
	}
	unregister_probes(ARRAY_SIZE(probes));
	tracing = false;
	trace->switches = sums[SWITCHES];
	trace->wakeups = sums[WAKEUPS];
	trace->allocs = sums[ALLOCS];
	trace->pages = sums[PAGES];
}

#else

int bench_trace_begin(void)
{
	return -EOPNOTSUPP;
}

void bench_trace_end(struct bench_trace *trace)
{
}

#endif
