// SPDX-License-Identifier: GPL-2.0
/* The measurements, the same for every peer. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/processor.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/vmalloc.h>

#include "bench.h"

/* Samples of the calls that many make at once: the last ones, if there are more. */
#define SAMPLES		(256 * 1024)
/* Calls without reply are let through when so many, or so much, may be underway. */
#define BURST		32
#define BURST_BYTES	(1024 * 1024)
/* What is sent in the background. */
#define BULK_SIZE	(1024 * 1024)
/* So many of the slowest calls are told one by one. */
#define SLOWEST		16

unsigned int bench_service_us;

void kccm_bench_serve(void)
{
	unsigned int us = READ_ONCE(bench_service_us);
	u64 end;

	if (!us)
		return;
	end = ktime_get_ns() + us * NSEC_PER_USEC;
	while (ktime_get_ns() < end)
		cpu_relax();
}

/* ---- Samples. */

static int compare_times(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

void bench_sort(u64 *times, size_t count)
{
	sort(times, count, sizeof(*times), compare_times, NULL);
}

/* Of sorted ones, that below which so many thousandths of them are. */
static u64 permille(const u64 *times, size_t count, unsigned int thousandths)
{
	return times[div_u64((u64)(count - 1) * thousandths, 1000)];
}

static u64 mean(const u64 *times, size_t count)
{
	u64 sum = 0;
	size_t i;

	for (i = 0; i < count; i++)
		sum += times[i];
	return div64_u64(sum, count);
}

/* ---- What it costs. */

static void say_each(struct bench_answer *answer, const char *name, u64 sum,
		     u64 count)
{
	u64 hundredths = div64_u64(sum * 100 + count / 2, count);
	u32 rest;

	hundredths = div_u64_rem(hundredths, 100, &rest);
	bench_say(answer, " %s=%llu.%02u", name, hundredths, rest);
}

/* For each of @count calls, or messages, and of those that were @traced. */
static void say_costs(struct bench_answer *answer,
		      const struct bench_cost *cost, u64 count,
		      const struct bench_trace *trace, u64 traced)
{
	u64 cpu_ns = bench_cost_cpu_ns(cost);

	if (cpu_ns && count)
		say_each(answer, "cpu_ns", cpu_ns, count);
	if (!traced)
		return;
	say_each(answer, "switches", trace->switches, traced);
	say_each(answer, "wakeups", trace->wakeups, traced);
	say_each(answer, "allocs", trace->allocs, traced);
	say_each(answer, "pages", trace->pages, traced);
}

/* ---- Those who send, or call, until they are stopped. */

struct worker {
	struct bench_line *line;
	struct bench_thread *thread;
	/* All begin at once: threads are slow to make while others run. */
	struct completion *begin;
	bool stop;
	u64 done;
	u64 before;		/* progress() when it was made */
	/* Of calls, while @recording: a ring of @room samples. */
	bool recording;
	u64 *times;
	size_t room, samples;
	int error;
};

static void send_on(void *data)
{
	struct worker *w = data;

	wait_for_completion(w->begin);
	while (!w->error && !READ_ONCE(w->stop)) {
		w->error = w->line->peer->send(w->line);
		if (!w->error)
			w->line->sent += w->line->size;
		cond_resched();
	}
	w->line->broken = w->error;
}

static void call_on(void *data)
{
	struct worker *w = data;
	u64 begin;

	wait_for_completion(w->begin);
	while (!w->error && !READ_ONCE(w->stop)) {
		begin = ktime_get_ns();
		w->error = w->line->peer->call(w->line);
		if (READ_ONCE(w->recording))
			w->times[w->samples++ % w->room] =
				ktime_get_ns() - begin;
		WRITE_ONCE(w->done, w->done + 1);
		cond_resched();
	}
	w->line->broken = w->error;
}

/* All that has come in, or been done, so far. */
static u64 progress(const struct worker *workers, unsigned int count)
{
	u64 sum = 0;
	unsigned int i;

	for (i = 0; i < count; i++)
		sum += workers[i].line->use == BENCH_CALLS ?
		       READ_ONCE(workers[i].done) :
		       READ_ONCE(workers[i].line->received);
	return sum;
}

static int make_workers(struct worker *workers, unsigned int count,
			const struct bench_peer *peer, enum bench_use use,
			size_t size, struct completion *begin)
{
	struct bench_thread *thread;
	unsigned int i;

	/* All lines before the first thread: opening one is no part of it. */
	for (i = 0; i < count; i++) {
		workers[i].line = bench_line(peer, use, i, size);
		if (IS_ERR(workers[i].line))
			return PTR_ERR(workers[i].line);
	}
	for (i = 0; i < count; i++) {
		workers[i].begin = begin;
		workers[i].before = progress(&workers[i], 1);
		thread = bench_thread(use == BENCH_CALLS ? call_on : send_on,
				      &workers[i], "worker");
		if (IS_ERR(thread))
			return PTR_ERR(thread);
		workers[i].thread = thread;
	}
	return 0;
}

/* What it starts in spite of an error is to be stopped, too. */
static int start_workers(struct worker *workers, unsigned int count,
			 const struct bench_peer *peer, enum bench_use use,
			 size_t size, struct completion *begin)
{
	int ret;

	init_completion(begin);
	ret = make_workers(workers, count, peer, use, size, begin);
	complete_all(begin);
	return ret;
}

static int stop_workers(struct worker *workers, unsigned int count)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; i < count && workers[i].thread; i++)
		WRITE_ONCE(workers[i].stop, true);
	for (i = 0; i < count && workers[i].thread; i++) {
		bench_join(workers[i].thread);
		ret = ret ?: workers[i].error;
	}
	for (i = 0; i < count && workers[i].thread && !ret; i++)
		ret = bench_settle(workers[i].line);
	return ret;
}

/* Wait until each of them has got something done. */
static int await_progress(const struct worker *workers, unsigned int count)
{
	unsigned int i, tries = 0;

	for (i = 0; i < count; i++) {
		while (progress(&workers[i], 1) == workers[i].before) {
			if (READ_ONCE(workers[i].error) || ++tries == 20000)
				return -ETIMEDOUT;
			usleep_range(500, 1000);
		}
	}
	return 0;
}

/* ---- Calls, one after the other. */

struct calls {
	const struct bench_request *rq;
	struct bench_line *line;
	u64 *times;
	struct bench_cost cost;
	struct bench_trace trace;
	u32 made, traced;	/* calls that were timed, and traced */
	bool cancel;
	int error;
};

/* So many, or fewer where the time is up; how many goes to @made. */
static int make_calls(struct calls *c, u64 *times, u32 count, u32 *made)
{
	size_t size = c->line->size;
	u32 burst = min(BURST, BURST_BYTES / max_t(size_t, size, 1));
	u64 begin = ktime_get_ns(), end = U64_MAX;
	int ret = 0;
	u32 i;

	if (c->rq->ms)
		end = begin + c->rq->ms * NSEC_PER_MSEC;
	for (i = 0; i < count && begin < end && !ret; i++) {
		begin = ktime_get_ns();
		ret = c->line->peer->call(c->line);
		if (times)
			times[i] = ktime_get_ns() - begin;
		if (c->line->peer->settled && i % burst == burst - 1 && !ret)
			ret = bench_settle(c->line);
		if (READ_ONCE(c->cancel))
			ret = -EINTR;
		cond_resched();
	}
	*made = i;
	return ret ?: bench_settle(c->line);
}

/* Once more, for what costs time to count. */
static int trace_calls(struct calls *c)
{
	int ret;

	if (bench_trace_begin())
		return 0;
	ret = make_calls(c, NULL, c->made, &c->traced);
	bench_trace_end(&c->trace);
	return ret;
}

static int measure_calls(struct calls *c)
{
	int ret;

	ret = make_calls(c, NULL, c->rq->warm, &c->made);
	if (ret)
		return ret;
	bench_cost_begin(&c->cost);
	ret = make_calls(c, c->times, c->rq->count, &c->made);
	bench_cost_end(&c->cost);
	if (!ret && c->line->peer->echo && !c->line->peer->settled)
		ret = c->line->peer->echo(c->line);
	if (ret)
		return ret;
	if (c->line->peer->fetch)
		c->line->peer->fetch(c->line);
	if (!c->line->peer->settled &&
	    memcmp(c->line->args, c->line->reply, c->line->size)) {
		pr_err("%s: the reply is not what was sent\n",
		       c->line->peer->name);
		return -EBADMSG;
	}
	return c->rq->trace ? trace_calls(c) : 0;
}

/* As the server is a thread of the kernel, so is the caller. */
static void call_all(void *data)
{
	struct calls *c = data;

	c->error = measure_calls(c);
	c->line->broken = c->error && c->error != -EINTR;
}

static void say_calls(struct calls *c, struct bench_answer *answer)
{
	u32 count = c->made, i;
	u64 *times = c->times;

	bench_sort(times, count);
	bench_say(answer,
		  "p50_ns=%llu p99_ns=%llu p999_ns=%llu mean_ns=%llu min_ns=%llu count=%u",
		  permille(times, count, 500), permille(times, count, 990),
		  permille(times, count, 999), mean(times, count), times[0],
		  count);
	for (i = 0; i < min(count, SLOWEST); i++)
		bench_say(answer, " slow%u_ns=%llu", i, times[count - 1 - i]);
	if (c->rq->trace)
		say_costs(answer, &c->cost, count, &c->trace, c->traced);
}

static int run_calls(const struct bench_request *rq,
		     struct bench_answer *answer)
{
	struct calls c = { .rq = rq };
	struct bench_thread *thread;

	c.line = bench_line(rq->peer, BENCH_CALLS, 0, rq->size);
	if (IS_ERR(c.line))
		return PTR_ERR(c.line);
	c.times = vzalloc(array_size(rq->count, sizeof(*c.times)));
	if (!c.times)
		return -ENOMEM;
	thread = bench_thread(call_all, &c, "caller");
	if (IS_ERR(thread)) {
		c.error = PTR_ERR(thread);
	} else {
		if (!bench_await(thread))
			WRITE_ONCE(c.cancel, true);
		bench_join(thread);
	}
	if (!c.error)
		say_calls(&c, answer);
	vfree(c.times);
	return c.error;
}

int bench_call(const struct bench_request *rq, struct bench_answer *answer)
{
	struct worker bulk = {};
	struct completion begin;
	int ret = 0, ended;

	if (rq->background) {
		ret = start_workers(&bulk, 1, rq->peer,
				    rq->background > 1 ? BENCH_BULK : BENCH_STREAM,
				    BULK_SIZE, &begin);
		if (!ret)
			ret = await_progress(&bulk, 1);
	}
	if (!ret)
		ret = run_calls(rq, answer);
	ended = stop_workers(&bulk, 1);
	return ret ?: ended;
}

/* ---- As much as goes. */

/* What comes of workers in some time, and what that costs. */
struct watched {
	u64 progress;
	struct bench_cost cost;
	u64 traced;
	struct bench_trace trace;
};

static u64 progress_in(const struct worker *workers, unsigned int count, u32 ms)
{
	u64 before = progress(workers, count);

	msleep_interruptible(ms);
	return progress(workers, count) - before;
}

static void watch(struct worker *workers, unsigned int count,
		  const struct bench_request *rq, struct watched *w)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		WRITE_ONCE(workers[i].recording, workers[i].times);
	bench_cost_begin(&w->cost);
	w->progress = progress_in(workers, count, rq->ms);
	bench_cost_end(&w->cost);
	for (i = 0; i < count; i++)
		WRITE_ONCE(workers[i].recording, false);
	/* For as long once more, for what costs time to count. */
	if (!rq->trace || bench_trace_begin())
		return;
	w->traced = progress_in(workers, count, rq->ms);
	bench_trace_end(&w->trace);
}

static int run_workers(struct worker *workers, unsigned int count,
		       const struct bench_request *rq, enum bench_use use,
		       struct watched *w)
{
	struct completion begin;
	int ret, ended;

	ret = start_workers(workers, count, rq->peer, use, rq->size, &begin);
	if (!ret)
		ret = await_progress(workers, count);
	if (!ret)
		watch(workers, count, rq, w);
	ended = stop_workers(workers, count);
	/* What made one end is why another did not get on. */
	return ended ?: ret;
}

int bench_flood(const struct bench_request *rq, struct bench_answer *answer)
{
	struct watched w = {};
	struct worker *workers;
	u64 count, ns;
	int ret;

	if (!rq->size) {
		pr_err("flood: size=0: what has no byte is not counted\n");
		return -EINVAL;
	}
	workers = kcalloc(rq->senders, sizeof(*workers), GFP_KERNEL);
	if (!workers)
		return -ENOMEM;
	ret = run_workers(workers, rq->senders, rq, BENCH_STREAM, &w);
	if (!ret) {
		ns = w.cost.wall_ns;
		count = div_u64(w.progress, rq->size);
		bench_say(answer,
			  "per_s=%llu bytes_per_s=%llu ms=%llu count=%llu",
			  mul_u64_u64_div_u64(w.progress, NSEC_PER_SEC,
					      ns * rq->size),
			  mul_u64_u64_div_u64(w.progress, NSEC_PER_SEC, ns),
			  div_u64(ns, NSEC_PER_MSEC), count);
		if (rq->trace)
			say_costs(answer, &w.cost, count, &w.trace,
				  div_u64(w.traced, rq->size));
	}
	kfree(workers);
	return ret;
}

/* Move all samples to the front, and sort them. */
static size_t gather(const struct worker *workers, unsigned int count,
		     u64 *times)
{
	size_t sum = 0;
	unsigned int i;

	for (i = 0; i < count; i++) {
		size_t got = min(workers[i].samples, workers[i].room);

		memmove(times + sum, workers[i].times, got * sizeof(*times));
		sum += got;
	}
	bench_sort(times, sum);
	return sum;
}

int bench_inflight(const struct bench_request *rq, struct bench_answer *answer)
{
	struct watched w = {};
	struct worker *workers;
	unsigned int i;
	u64 *times;
	size_t got;
	int ret;

	workers = kcalloc(rq->depth, sizeof(*workers), GFP_KERNEL);
	times = vmalloc_array(SAMPLES, sizeof(*times));
	ret = workers && times ? 0 : -ENOMEM;
	for (i = 0; i < rq->depth && !ret; i++) {
		workers[i].room = SAMPLES / rq->depth;
		workers[i].times = times + i * workers[i].room;
	}
	if (!ret)
		ret = run_workers(workers, rq->depth, rq, BENCH_CALLS, &w);
	if (!ret) {
		got = gather(workers, rq->depth, times);
		ret = got ? 0 : -ETIMEDOUT;
	}
	if (!ret)
		bench_say(answer, "per_s=%llu p50_ns=%llu p99_ns=%llu count=%llu",
			  mul_u64_u64_div_u64(w.progress, NSEC_PER_SEC,
					      w.cost.wall_ns),
			  permille(times, got, 500), permille(times, got, 990),
			  w.progress);
	vfree(times);
	kfree(workers);
	return ret;
}
