// SPDX-License-Identifier: GPL-2.0
/* KCCM itself: calls and messages from node 0 of a cluster in this kernel to node 1. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/printk.h>
#include <linux/string.h>

#include "bench.h"

/* A class of handlers is a peer of its own; all share the nodes. */
static struct kccm_bench_nodes *nodes;
static unsigned int users;
/* Asynchronous calls, of whatever class. */
static atomic64_t made;

static int kccm_start(const struct bench_peer *peer, unsigned int count)
{
	struct kccm_bench_nodes *cluster;

	if (!users) {
		if (count < 2)
			return -EINVAL;
		cluster = kccm_bench_cluster(count);
		if (IS_ERR(cluster))
			return PTR_ERR(cluster);
		nodes = cluster;
		atomic64_set(&made, 0);
	}
	users++;
	return 0;
}

static void kccm_stop(const struct bench_peer *peer)
{
	if (!--users)
		kccm_bench_stop(nodes);
}

static int kccm_call(struct bench_line *line)
{
	return kccm_bench_rcall_sync(nodes, line->peer->id, line->args,
				     line->reply, line->size);
}

static int kccm_echo(struct bench_line *line)
{
	/* Nothing of an earlier call is taken for this one's reply. */
	memset(line->reply, 0, line->size);
	return kccm_bench_rcall_sync(nodes, line->peer->id | KCCM_BENCH_ECHO,
				     line->args, line->reply, line->size);
}

/* ---- Asynchronous calls. */

static int kccm_call_async(struct bench_line *line)
{
	atomic64_inc(&made);
	return kccm_bench_rcall(nodes, line->peer->id, line->args,
				line->size);
}

static bool kccm_settled(const struct bench_line *line)
{
	return kccm_bench_ran(nodes) >= atomic64_read(&made);
}

/* ---- Messages. Each line has a tag of its own; an empty message is its last. */

static u32 tag_of(const struct bench_line *line)
{
	u32 kind = (line->peer - bench_kccm_peers) * BENCH_USES + line->use;

	return kind * BENCH_MAX_LINES + line->index;
}

static int send_to(const struct bench_line *line, const void *buf, size_t size)
{
	if (line->use == BENCH_BULK)
		return kccm_bench_send_bulk(nodes, tag_of(line), buf, size);
	return kccm_bench_send(nodes, tag_of(line), buf, size);
}

/* The first length at which memory is taken over rather than copied. */
#define LONG_SIZE SZ_16K

static void kccm_receive(void *data)
{
	struct bench_line *line = data;
	char buf[1024];
	ssize_t len;

	do {
		len = -EMSGSIZE;
		if (READ_ONCE(line->size) < LONG_SIZE)
			len = kccm_bench_recv(nodes, tag_of(line), buf,
					      sizeof(buf));
		/* Or it has become longer while it was waited for. */
		if (len == -EMSGSIZE)
			len = kccm_bench_recv_alloc(nodes, tag_of(line));
		if (len > 0)
			WRITE_ONCE(line->received, line->received + len);
	} while (len > 0);
	if (len < 0)
		pr_err("kccm: messages cannot be received: %zd\n", len);
}

static int kccm_open(struct bench_line *line)
{
	struct bench_thread *thread;

	if (line->use == BENCH_CALLS)
		return 0;
	thread = bench_thread(kccm_receive, line, "kccm");
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	line->private = thread;
	return 0;
}

static void kccm_close(struct bench_line *line)
{
	if (!line->private)
		return;
	send_to(line, NULL, 0);
	bench_join(line->private);
}

static int kccm_send(struct bench_line *line)
{
	return send_to(line, line->args, line->size);
}

/* ---- The peers. */

#define KCCM_PEER(_name, _func, _call, _settled) {	\
	.name = _name,					\
	.id = _func,					\
	.start = kccm_start,				\
	.stop = kccm_stop,				\
	.open = kccm_open,				\
	.close = kccm_close,				\
	.call = _call,					\
	.echo = kccm_echo,				\
	.settled = _settled,				\
	.send = kccm_send,				\
	.has_bulk = true,				\
}

const struct bench_peer bench_kccm_peers[] = {
	KCCM_PEER("kccm", 0, NULL, NULL),
	KCCM_PEER("kccm-short", KCCM_BENCH_SHORT, kccm_call, NULL),
	KCCM_PEER("kccm-long", KCCM_BENCH_LONG, kccm_call, NULL),
	KCCM_PEER("kccm-softirq", KCCM_BENCH_SOFTIRQ, kccm_call, NULL),
	KCCM_PEER("kccm-softirq-copying", KCCM_BENCH_SOFTIRQ | KCCM_BENCH_ECHO,
		  kccm_call, NULL),
	KCCM_PEER("kccm-async-short", KCCM_BENCH_SHORT, kccm_call_async,
		  kccm_settled),
	KCCM_PEER("kccm-async-long", KCCM_BENCH_LONG, kccm_call_async,
		  kccm_settled),
	{}
};
