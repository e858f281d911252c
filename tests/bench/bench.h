/* SPDX-License-Identifier: GPL-2.0 */
/* What the C half of the benchmark shares. */
#ifndef _KCCM_BENCH_H
#define _KCCM_BENCH_H

#include <linux/types.h>

#include "nodes.h"

#define BENCH_MAX_LINES	256
#define BENCH_MAX_COUNT	1000000

struct bench_peer;

/* What a line is for. */
enum bench_use {
	BENCH_CALLS,	/* calls, one at a time, by one thread */
	BENCH_STREAM,	/* messages one way */
	BENCH_BULK,	/* the same, by a way that calls do not share */
	BENCH_USES
};

/*
 * One end of a conversation with a peer, for one thread at a time. A line stays
 * until its peer is stopped: the next measurement finds it warm.
 */
struct bench_line {
	const struct bench_peer *peer;
	enum bench_use use;
	unsigned int index;		/* among those for the same use */
	/* Of this measurement: */
	size_t size;
	void *args, *reply;		/* of @size bytes, and at least one */
	bool broken;			/* it has failed: the next one opens it anew */
	/* Of messages, bytes: */
	u64 sent;
	u64 received;
	void *private;			/* the peer's */
};

/*
 * A peer: what carries calls or messages. Functions that it does not have it
 * cannot do. All but those of a line are called by one thread at a time. Errors
 * are told to the log by the peer where only it knows what to do; -EOPNOTSUPP
 * says that it cannot carry such a size.
 */
struct bench_peer {
	const char *name;
	u32 id;				/* the peer's own */
	int (*start)(const struct bench_peer *peer, unsigned int nodes);
	void (*stop)(const struct bench_peer *peer);
	int (*open)(struct bench_line *line);
	void (*close)(struct bench_line *line);
	/* Makes a call with @args, and has its reply when it returns. */
	int (*call)(struct bench_line *line);
	/* Puts the last reply into @reply, where a call does not, or NULL. */
	void (*fetch)(struct bench_line *line);
	/* The same as @call of a server that replies with its arguments, or NULL. */
	int (*echo)(struct bench_line *line);
	/* Of calls without reply, or NULL: whether all have been run. */
	bool (*settled)(const struct bench_line *line);
	/* Sends @args, at least a byte. What comes in is added to @received. */
	int (*send)(struct bench_line *line);
	bool has_bulk;			/* its lines may be for BENCH_BULK */
};

/* All there are; the last has no name. */
extern const struct bench_peer bench_tcp_peers[], bench_kccm_peers[];
extern const struct bench_peer bench_tipc_peers[], bench_sunrpc_peers[];

/* A command's words. */
struct bench_request {
	const struct bench_peer *peer;
	u32 size, count, warm, service_us, background;
	u32 ms, senders, depth, nodes, trace;
};

/* ---- cost.c */

/* What all CPUs have done between two looks. */
struct bench_cost {
	u64 wall_ns;
	u64 idle_us;
};

void bench_cost_begin(struct bench_cost *cost);
void bench_cost_end(struct bench_cost *cost);
u64 bench_cost_cpu_ns(const struct bench_cost *cost);

/* What trace points have counted. */
struct bench_trace {
	u64 switches, wakeups;
	u64 allocs, pages;	/* of the slab allocator, and of pages */
};

int bench_trace_begin(void);
void bench_trace_end(struct bench_trace *trace);

/* ---- device.c */

/* An open file: where answers go. */
struct bench_answer {
	char text[1024];
	size_t len;
	/* From cost-begin to cost-end: */
	struct bench_cost cost;
	bool tracing;
};

__printf(2, 3) void bench_say(struct bench_answer *answer, const char *fmt, ...);

/* ---- measure.c, scale.c: the commands. */

/* How long a call takes at who is called. */
extern unsigned int bench_service_us;

void bench_sort(u64 *times, size_t count);

int bench_call(const struct bench_request *rq, struct bench_answer *answer);
int bench_flood(const struct bench_request *rq, struct bench_answer *answer);
int bench_inflight(const struct bench_request *rq, struct bench_answer *answer);
int bench_scale(const struct bench_request *rq, struct bench_answer *answer);

/* ---- lines.c */

int bench_start(const struct bench_request *rq, struct bench_answer *answer);
int bench_stop(const struct bench_request *rq, struct bench_answer *answer);
void bench_stop_all(void);

struct bench_line *bench_line(const struct bench_peer *peer, enum bench_use use,
			      unsigned int index, size_t size);
int bench_settle(struct bench_line *line);

struct bench_thread;
struct bench_thread *bench_thread(void (*fn)(void *data), void *data,
				  const char *name);
bool bench_await(struct bench_thread *thread);
void bench_join(struct bench_thread *thread);

#endif /* _KCCM_BENCH_H */
