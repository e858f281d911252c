// SPDX-License-Identifier: GPL-2.0
/* What a measurement costs beside time. */
#include <linux/cpumask.h>
#include <linux/err.h>
#include <linux/fs.h>
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

#define STAT_SIZE	(64 * 1024)

/* nr_context_switches() as /proc/stat tells it: modules are not told. 0: not known. */
static u64 context_switches(void)
{
	char *buf = kvmalloc(STAT_SIZE, GFP_KERNEL), *line = NULL;
	struct file *file;
	u64 count = 0;
	ssize_t got;
	size_t len = 0;
	loff_t pos = 0;

	file = filp_open("/proc/stat", O_RDONLY, 0);
	if (buf && !IS_ERR(file)) {
		do {
			got = kernel_read(file, buf + len, STAT_SIZE - 1 - len,
					  &pos);
			len += max(got, 0);
		} while (got > 0);
		buf[len] = '\0';
		line = strstr(buf, "\nctxt ");
	}
	if (line)
		sscanf(line, " ctxt %llu", &count);
	if (!IS_ERR(file))
		filp_close(file, NULL);
	kvfree(buf);
	return count;
}

void bench_cost_begin(struct bench_cost *cost)
{
	cost->switches = context_switches();
	cost->idle_us = idle_us();
	cost->wall_ns = ktime_get_ns();
}

void bench_cost_end(struct bench_cost *cost)
{
	cost->wall_ns = ktime_get_ns() - cost->wall_ns;
	cost->idle_us = idle_us() - cost->idle_us;
	cost->switches = context_switches() - cost->switches;
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

/* ---- Trace points. They cost something: not while time is measured. */

#ifdef CONFIG_TRACEPOINTS

enum {
	SWITCHES,
	WAKEUPS,
	ALLOCS,
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

static struct {
	const char *name;
	void *probe;
	struct tracepoint *tp;
} probes[] = {
	{ "sched_switch", saw_switch },
	{ "sched_wakeup", saw_wakeup },
	{ "kmalloc", saw_kmalloc },
	{ "kmem_cache_alloc", saw_cache_alloc },
};

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

/* Count from now on. */
int bench_trace_begin(void)
{
	int cpu, i, ret = 0;

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
	trace->switches = sums[SWITCHES];
	trace->wakeups = sums[WAKEUPS];
	trace->allocs = sums[ALLOCS];
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
