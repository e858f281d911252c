// SPDX-License-Identifier: GPL-2.0
/*
 * Which peers have been started, and their lines. One command runs at a time,
 * so nothing here is locked.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "bench.h"

/* A peer that has been started. */
struct started {
	struct list_head list;
	const struct bench_peer *peer;
	struct bench_line *lines[BENCH_USES][BENCH_MAX_LINES];
};

static LIST_HEAD(all_started);

static struct started *find(const struct bench_peer *peer)
{
	struct started *started;

	list_for_each_entry(started, &all_started, list) {
		if (started->peer == peer)
			return started;
	}
	return NULL;
}

int bench_start(const struct bench_request *rq, struct bench_answer *answer)
{
	struct started *started;
	int ret;

	if (find(rq->peer)) {
		pr_err("%s has been started already\n", rq->peer->name);
		return -EEXIST;
	}
	started = kvzalloc_obj(*started);
	if (!started)
		return -ENOMEM;
	started->peer = rq->peer;
	ret = rq->peer->start(rq->peer, rq->nodes);
	if (ret) {
		kvfree(started);
		return ret;
	}
	list_add(&started->list, &all_started);
	bench_say(answer, "started=%s", rq->peer->name);
	return 0;
}

static void free_line(struct bench_line *line)
{
	kvfree(line->args);
	kvfree(line->reply);
	kfree(line);
}

static void close_line(struct bench_line *line)
{
	if (line->peer->close)
		line->peer->close(line);
	free_line(line);
}

static void stop(struct started *started)
{
	const struct bench_peer *peer = started->peer;
	struct bench_line *line;
	int use, i;

	for (use = 0; use < BENCH_USES; use++) {
		for (i = 0; i < BENCH_MAX_LINES; i++) {
			line = started->lines[use][i];
			if (line)
				close_line(line);
		}
	}
	peer->stop(peer);
	list_del(&started->list);
	kvfree(started);
}

int bench_stop(const struct bench_request *rq, struct bench_answer *answer)
{
	struct started *started = find(rq->peer);

	if (!started) {
		pr_err("%s has not been started\n", rq->peer->name);
		return -ENOENT;
	}
	stop(started);
	bench_say(answer, "stopped=%s", rq->peer->name);
	return 0;
}

void bench_stop_all(void)
{
	struct started *started, *next;

	list_for_each_entry_safe(started, next, &all_started, list)
		stop(started);
}

/* Give a line buffers for messages of that size. */
static int resize(struct bench_line *line, size_t size)
{
	void *args = kvmalloc(max_t(size_t, size, 1), GFP_KERNEL);
	void *reply = kvzalloc(max_t(size_t, size, 1), GFP_KERNEL);
	size_t i;

	if (!args || !reply) {
		kvfree(args);
		kvfree(reply);
		return -ENOMEM;
	}
	for (i = 0; i < size; i++)
		((u8 *)args)[i] = (i * 7 + line->index) ^ (i >> 8);
	kvfree(line->args);
	kvfree(line->reply);
	line->args = args;
	line->reply = reply;
	line->size = size;
	return 0;
}

/* The line of that number for messages of that size, or an error pointer. */
struct bench_line *bench_line(const struct bench_peer *peer, enum bench_use use,
			      unsigned int index, size_t size)
{
	struct started *started = find(peer);
	struct bench_line *line;
	int ret;

	if (!started) {
		pr_err("start peer=%s first\n", peer->name);
		return ERR_PTR(-ENOTCONN);
	}
	if (use == BENCH_CALLS ? !peer->call : !peer->send)
		return ERR_PTR(-EOPNOTSUPP);
	if (use == BENCH_BULK && !peer->has_bulk)
		return ERR_PTR(-EOPNOTSUPP);
	line = started->lines[use][index];
	if (line && line->broken) {
		close_line(line);
		started->lines[use][index] = NULL;
		line = NULL;
	}
	if (line) {
		ret = resize(line, size);
		return ret ? ERR_PTR(ret) : line;
	}
	line = kzalloc_obj(*line);
	if (!line)
		return ERR_PTR(-ENOMEM);
	line->peer = peer;
	line->use = use;
	line->index = index;
	ret = resize(line, size);
	if (!ret && peer->open)
		ret = peer->open(line);
	if (ret) {
		free_line(line);
		return ERR_PTR(ret);
	}
	started->lines[use][index] = line;
	return line;
}

static bool settled(const struct bench_line *line)
{
	if (line->use != BENCH_CALLS)
		return READ_ONCE(line->received) >= line->sent;
	return !line->peer->settled || line->peer->settled(line);
}

/* Wait until all that has been sent, or called, on a line has come in. */
int bench_settle(struct bench_line *line)
{
	unsigned int tries;

	for (tries = 0; !settled(line); tries++) {
		if (tries == 100000)
			return -ETIMEDOUT;
		usleep_range(100, 200);
	}
	return 0;
}

/* ---- Threads. */

struct bench_thread {
	void (*fn)(void *data);
	void *data;
	struct completion ended;
};

static int run_thread(void *data)
{
	struct bench_thread *thread = data;

	thread->fn(thread->data);
	kthread_complete_and_exit(&thread->ended, 0);
}

/* Run a thread until its function returns. */
struct bench_thread *bench_thread(void (*fn)(void *data), void *data,
				  const char *name)
{
	struct bench_thread *thread = kzalloc_obj(*thread);
	struct task_struct *task;

	if (!thread)
		return ERR_PTR(-ENOMEM);
	thread->fn = fn;
	thread->data = data;
	init_completion(&thread->ended);
	task = kthread_run(run_thread, thread, "bench/%s", name);
	if (IS_ERR(task)) {
		kfree(thread);
		return ERR_CAST(task);
	}
	return thread;
}

/* Wait for a thread to end by itself, unless the current task is killed. */
bool bench_await(struct bench_thread *thread)
{
	/* That it has ended is to be seen once more, by bench_join(). */
	if (wait_for_completion_killable(&thread->ended))
		return false;
	complete(&thread->ended);
	return true;
}

/*
 * Wait for a thread, which has been given cause to end. kthread_stop() would
 * break off what it waits for.
 */
void bench_join(struct bench_thread *thread)
{
	wait_for_completion(&thread->ended);
	kfree(thread);
}
