// SPDX-License-Identifier: GPL-2.0
/*
 * A counter that all nodes increment, each under the lock.
 *
 * Every node that takes part keeps a copy. An increment reads the copies of
 * all others and takes the latest, adds one, and writes the result to all of
 * them: the more there are between reading and writing, the more surely two
 * nodes that are in at once would overwrite each other's increments.
 *
 * An increment is complete, or acknowledged, when all who take part have it,
 * a quorum at least. Then it is not lost as long as one of them is there: a
 * node that comes is told the counter before it may enter (struct hello), and
 * written to if it comes in the midst of a write. What survives when not even
 * a quorum remains of those who were told, or when nodes begin anew while
 * others are cut off, is not certain.
 *
 * The stamps of the lock fence it: who has been read or written under a stamp
 * refuses any with an earlier one. So a node that has been cut off while it
 * was in, and does not know that others have been in since, does no harm: its
 * increment fails, and it tries again. As long as nodes only fail, and the
 * lock does what it is for, that does not happen: "fenced" stays 0.
 *
 * How to tell that nothing was lost: by[i].count is how many increments of
 * node i are in the counter, by[i].acked of how many of them it has told the
 * others that they are complete. A node that is killed may have got one into
 * the counter without having told. Everything else is the same: for each node
 *
 *	acked <= count <= acked + (times that it was killed)
 *
 * and the value is the sum of the counts. Each node checks with every
 * increment that its own count is what it had left; "lost" counts where it is
 * not.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cleanup.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/sched/task.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/unaligned.h>

#include "lock.h"

/* This node's copy, and the greatest stamp that it was read or written under. */
static struct counter *copy;
static u64 fence;

/* What an increment works on, and what it receives. */
static struct counter *latest;
static struct counter *received;

/**
 * struct run - increments one after the other, in a thread
 * @mutex: one starts or stops it at a time; protects @task. The lock's mutex,
 *	taken after this one, protects the rest
 * @task: the thread, or the last one, which has ended
 * @claim: on the lock
 * @stop: it is to end
 * @running: it has not ended
 * @state: how it stands, for people
 * @wanted: how many increments to make
 * @done: how many are made
 * @msecs: how long it took
 */
struct run {
	struct mutex mutex;	/* see above */
	struct task_struct *task;
	struct claim claim;
	bool stop;
	bool running;
	const char *state;
	u64 wanted;
	u64 done;
	u64 msecs;
};

static struct run run = {
	.mutex = __MUTEX_INITIALIZER(run.mutex),
	.claim = { .list = LIST_HEAD_INIT(run.claim.list) },
	.state = "none",
};

/**
 * struct history - what this node knows of its own increments
 * @begun: it has made one since the module was loaded
 * @unsure: the last one failed, but may have reached some
 * @in_flight: one is being written
 * @count: by[me].count as it must be
 * @fenced: how many failed because the node was not in alone
 * @short_of: how many failed because a quorum was not there any more
 * @lost: how often the count was not what it must be
 */
struct history {
	bool begun;
	bool unsure;
	bool in_flight;
	u64 count;
	u64 fenced;
	u64 short_of;
	u64 lost;
};

static struct history history;

static inline void le64_inc(__le64 *number)
{
	put_unaligned_le64(get_unaligned_le64(number) + 1, number);
}

/* ---- Copies ---- */

/**
 * counter_size() - how long a copy is
 *
 * Return: its length in bytes.
 */
size_t counter_size(void)
{
	return struct_size_t(struct counter, by, dlock.nr_ids);
}

/**
 * counter_get() - read this node's copy
 * @to: where it goes
 *
 * Context: the lock's mutex is held.
 */
void counter_get(struct counter *to)
{
	memcpy(to, copy, counter_size());
}

static void merge(struct counter *into, const struct counter *from)
{
	bool later = le64_to_cpu(from->stamp) > le64_to_cpu(into->stamp);
	u32 i;

	if (later) {
		into->stamp = from->stamp;
		into->value = from->value;
	}
	for (i = 0; i < dlock.nr_ids; i++) {
		if (later) {
			into->by[i].count = from->by[i].count;
			into->by[i].runs = from->by[i].runs;
		}
		/* This only grows, and is not told in order by all. */
		if (le64_to_cpu(from->by[i].acked) > le64_to_cpu(into->by[i].acked))
			into->by[i].acked = from->by[i].acked;
	}
}

/**
 * counter_merge() - take over what is later than in this node's copy
 * @from: another copy
 *
 * Context: the lock's mutex is held.
 */
void counter_merge(const struct counter *from)
{
	merge(copy, from);
	fence = max(fence, le64_to_cpu(copy->stamp));
}

/* Let nobody with an earlier stamp in any more; fails for whom that is. */
static int pass_fence(u64 stamp)
{
	if (stamp < fence)
		return -ESTALE;
	fence = stamp;
	return 0;
}

static int handle_read(struct kccm_call *call, void *ctx)
{
	if (call->args_len != sizeof(__le64) || call->reply_max < counter_size())
		return -EINVAL;
	guard(mutex)(&dlock.mutex);
	if (pass_fence(get_unaligned_le64(call->args)))
		return -ESTALE;
	counter_get(call->reply);
	call->reply_len = counter_size();
	return 0;
}

static int handle_write(struct kccm_call *call, void *ctx)
{
	const struct counter *counter = call->args;

	if (call->args_len != counter_size())
		return -EINVAL;
	guard(mutex)(&dlock.mutex);
	if (pass_fence(le64_to_cpu(counter->stamp)))
		return -ESTALE;
	merge(copy, counter);
	return 0;
}

/* A node tells how many of its increments are complete. */
static int handle_done(struct kccm_call *call, void *ctx)
{
	__le64 *acked = &copy->by[call->source].acked;

	if (call->args_len != sizeof(__le64))
		return -EINVAL;
	guard(mutex)(&dlock.mutex);
	if (get_unaligned_le64(call->args) > get_unaligned_le64(acked))
		put_unaligned_le64(get_unaligned_le64(call->args), acked);
	return 0;
}

/* ---- An increment ---- */

/*
 * Call a node: 0 if that worked, -EHOSTDOWN if it does not take part (any
 * more), -ESTALE if it knows of somebody who has been in since.
 */
static int call_node(u32 id, enum lock_func func, const void *args, size_t args_len,
		     void *reply, size_t reply_len)
{
	size_t len;
	int ret, status;

	for (;;) {
		len = reply_len;
		ret = kccm_rcall_sync(id, func, args, args_len, reply, &len, &status,
				      KCCM_FOREVER);
		if (ret != -ENOMEM)
			break;
		msleep(20);
	}
	if (ret == -EREMOTEIO)
		return status;
	if (ret == -EOPNOTSUPP || ret == -ESHUTDOWN)
		return -EHOSTDOWN;
	if (!ret && len != reply_len)
		return -EPROTO;
	return ret;
}

/* Read the latest copy. */
static int read_latest(u64 stamp)
{
	__le64 arg = cpu_to_le64(stamp);
	struct peer *peer;
	u32 nodes = 1;
	int ret;

	scoped_guard(mutex, &dlock.mutex) {
		if (pass_fence(stamp))
			return -ESTALE;
		counter_get(latest);
	}
	list_for_each_entry(peer, &dlock.all, list) {
		if (!READ_ONCE(peer->in))
			continue;
		ret = call_node(peer->id, COUNTER_READ, &arg, sizeof(arg), received,
				counter_size());
		if (ret == -EHOSTDOWN)
			continue;
		if (ret)
			return ret;
		merge(latest, received);
		nodes++;
	}
	return nodes >= dlock.quorum ? 0 : -EAGAIN;
}

/* A node that takes part and has not been written to, or NULL. */
static struct peer *next_to_write(void)
{
	struct peer *peer;

	list_for_each_entry(peer, &dlock.all, list) {
		if (peer->in && !peer->written) {
			peer->written = true;
			return peer;
		}
	}
	return NULL;
}

/*
 * Write what has been made of it to all who take part, to this node last.
 *
 * Who comes meanwhile either has been told of this node's copy, as it was, and
 * is written to, or is told of it afterwards.
 */
static int write_latest(u64 stamp)
{
	struct peer *peer;
	u32 nodes = 1;
	int ret;

	scoped_guard(mutex, &dlock.mutex) {
		history.in_flight = true;
		list_for_each_entry(peer, &dlock.all, list)
			peer->written = false;
	}
	for (;;) {
		scoped_guard(mutex, &dlock.mutex) {
			peer = next_to_write();
			if (!peer) {
				history.in_flight = false;
				if (nodes < dlock.quorum)
					return -EAGAIN;
				if (pass_fence(stamp))
					return -ESTALE;
				le64_inc(&latest->by[dlock.me].acked);
				merge(copy, latest);
				return 0;
			}
		}
		ret = call_node(peer->id, COUNTER_WRITE, latest, counter_size(), NULL, 0);
		if (!ret)
			nodes++;
		else if (ret != -EHOSTDOWN)
			break;
	}
	scoped_guard(mutex, &dlock.mutex)
		history.in_flight = false;
	return ret;
}

/* Tell the others that the last increment is complete. */
static void tell_done(void)
{
	__le64 acked = latest->by[dlock.me].acked;
	struct peer *peer;

	list_for_each_entry(peer, &dlock.all, list) {
		/* Who does not get it gets the next one, or a later copy. */
		if (READ_ONCE(peer->in))
			kccm_rcall(peer->id, COUNTER_DONE, &acked, sizeof(acked),
				   KCCM_FOREVER);
	}
}

/* Add one to the counter; the lock is held, with that stamp. */
static int increment(u64 stamp)
{
	u64 count;
	bool had;
	int ret;

	ret = read_latest(stamp);
	if (ret)
		return ret;
	count = le64_to_cpu(latest->by[dlock.me].count);
	/* The last one failed, but is in there nevertheless. */
	had = history.unsure && count == history.count + 1;
	if (history.begun && !had && count != history.count) {
		scoped_guard(mutex, &dlock.mutex)
			history.lost++;
		pr_err("of this node's increments %llu are left, not %llu: the lock is broken\n",
		       count, history.count);
	}
	history.count = count - had;
	latest->stamp = cpu_to_le64(stamp);
	if (!had) {
		le64_inc(&latest->value);
		le64_inc(&latest->by[dlock.me].count);
		if (!history.begun)
			le64_inc(&latest->by[dlock.me].runs);
	}
	ret = write_latest(stamp);
	history.unsure = ret;
	if (ret)
		return ret;
	history.begun = true;
	history.count++;
	tell_done();
	return 0;
}

/* ---- Many increments ---- */

/* One increment, or none if it is to end. */
static int run_once(void)
{
	int ret = -ECANCELED;

	dlock_claim(&run.claim);
	wait_event_idle(dlock.granted,
			READ_ONCE(run.claim.granted) || READ_ONCE(run.stop));
	if (READ_ONCE(run.claim.granted))
		ret = increment(run.claim.stamp);
	dlock_release(&run.claim);
	return ret;
}

static int run_thread(void *unused)
{
	ktime_t started = ktime_get();
	int ret;

	for (;;) {
		ret = run_once();
		guard(mutex)(&dlock.mutex);
		run.done += !ret;
		run.msecs = ktime_ms_delta(ktime_get(), started);
		history.fenced += ret == -ESTALE;
		history.short_of += ret == -EAGAIN;
		if (run.done == run.wanted)
			run.state = "done";
		else if (run.stop)
			run.state = "stopped";
		else if (!ret || ret == -ESTALE || ret == -EAGAIN)
			continue;
		else
			run.state = "failed";
		if (ret && !run.stop)
			pr_err("an increment failed: %pe\n", ERR_PTR(ret));
		run.running = false;
		return ret;
	}
}

static void run_end(void)
{
	scoped_guard(mutex, &dlock.mutex)
		WRITE_ONCE(run.stop, true);
	wake_up_all(&dlock.granted);
	if (!run.task)
		return;
	kthread_stop_put(run.task);
	run.task = NULL;
}

/**
 * counter_run() - begin to increment the counter again and again
 * @increments: how often, not 0
 *
 * Return: 0; -EBUSY: it is being done already; -EINVAL; -ENOMEM.
 */
int counter_run(u64 increments)
{
	struct task_struct *task;

	if (!increments)
		return -EINVAL;
	guard(mutex)(&run.mutex);
	scoped_guard(mutex, &dlock.mutex) {
		if (run.running)
			return -EBUSY;
	}
	run_end();
	task = kthread_create(run_thread, NULL, KBUILD_MODNAME "/run");
	if (IS_ERR(task))
		return PTR_ERR(task);
	run.task = get_task_struct(task);
	scoped_guard(mutex, &dlock.mutex) {
		run.stop = false;
		run.running = true;
		run.state = "running";
		run.wanted = increments;
		run.done = 0;
		run.msecs = 0;
	}
	wake_up_process(task);
	return 0;
}

/**
 * counter_stop() - end that; waits for the increment that is being made
 */
void counter_stop(void)
{
	guard(mutex)(&run.mutex);
	run_end();
}

/* ---- The rest ---- */

/**
 * counter_show() - print how it stands
 * @seq: where to
 *
 * Context: the lock's mutex is held.
 */
void counter_show(struct seq_file *seq)
{
	u64 acked = 0;
	u32 id;

	for (id = 0; id < dlock.nr_ids; id++)
		acked += le64_to_cpu(copy->by[id].acked);
	seq_printf(seq, "count=%llu acked=%llu in_flight=%d fenced=%llu short_of=%llu lost=%llu\n",
		   le64_to_cpu(copy->value), acked, history.in_flight,
		   history.fenced, history.short_of, history.lost);
	seq_printf(seq, "run=%s done=%llu wanted=%llu ms=%llu\n", run.state,
		   run.done, run.wanted, run.msecs);
	for (id = 0; id < dlock.nr_ids; id++) {
		if (id != dlock.me && list_empty(&dlock.peers[id].list))
			continue;
		seq_printf(seq, "node=%u count=%llu acked=%llu runs=%llu\n", id,
			   le64_to_cpu(copy->by[id].count),
			   le64_to_cpu(copy->by[id].acked),
			   le64_to_cpu(copy->by[id].runs));
	}
}

static struct kccm_handler handlers[] = {
	/* Its max_args is set in counter_init(). */
	{ .func = COUNTER_WRITE, .class = KCCM_SHORT, .name = "counter write",
	  .fn = handle_write, .owner = THIS_MODULE },
	{ .func = COUNTER_READ, .class = KCCM_SHORT, .name = "counter read",
	  .fn = handle_read, .max_args = sizeof(__le64), .owner = THIS_MODULE },
	{ .func = COUNTER_DONE, .class = KCCM_SHORT, .name = "counter done",
	  .fn = handle_done, .max_args = sizeof(__le64), .owner = THIS_MODULE },
};

static void counter_free(void)
{
	kfree(copy);
	kfree(latest);
	kfree(received);
}

/**
 * counter_init() - have a copy of the counter, which others may read and write
 *
 * Return: 0; -ENOMEM; or as kccm_register_handler().
 */
int counter_init(void)
{
	int ret = -ENOMEM;

	copy = kzalloc(counter_size(), GFP_KERNEL);
	latest = kzalloc(counter_size(), GFP_KERNEL);
	received = kzalloc(counter_size(), GFP_KERNEL);
	if (copy && latest && received) {
		handlers[0].max_args = counter_size();
		ret = register_handlers(handlers, ARRAY_SIZE(handlers));
	}
	if (ret)
		counter_free();
	return ret;
}

/**
 * counter_exit() - undo counter_init(); nobody increments it by now
 */
void counter_exit(void)
{
	unregister_handlers(handlers, ARRAY_SIZE(handlers));
	counter_free();
}
