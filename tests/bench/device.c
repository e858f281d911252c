// SPDX-License-Identifier: GPL-2.0
/*
 * KCCM and its peers, measured: /dev/kccm_bench.
 *
 * A command is written to it, and one line of figures read from the same open
 * file:
 *
 *	exec 3<>/dev/kccm_bench; echo "call peer=tcp size=64 count=1000" >&3; cat <&3
 *
 * start peer=P [nodes=N]	set a peer's pair, or N nodes, up
 * stop peer=P			and take it down
 * call peer=P size=B count=N [warm=W] [service_us=U] [background=1|2] [trace=1]
 *				[ms=T]
 *		time N calls, one after the other, with B bytes of arguments and B
 *		of reply, after W that are not timed; fewer of each, but one, where
 *		T milliseconds are over. The handler takes U microseconds. With
 *		background=1 messages of 1 MiB are sent over the same pair
 *		meanwhile, with 2 by the way that the peer has for bulk. With
 *		trace=1 say also what each call costs, for which they are made once
 *		more
 * flood peer=P size=B ms=T [senders=S] [trace=1]
 *		count messages one way, where they come in, for T milliseconds,
 *		and again for what each costs
 * inflight peer=P size=B ms=T depth=D [service_us=U]
 *		count and time calls for T milliseconds, D at a time
 * scale nodes=N
 *		how N nodes of KCCM become a cluster, and what they take
 * cost-begin [trace=1]
 * cost-end	what is done between the two, by programs, costs: CPU time, or with
 *		trace=1 what trace=1 of a call counts. Closing the file ends it, too
 *
 * A size that a peer cannot carry is answered with "error=unsupported". Whatever
 * else goes wrong makes write() fail, and is told in the log. One command runs
 * at a time.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "bench.h"

static const struct bench_peer *const peers[] = {
	bench_tcp_peers,
	bench_kccm_peers,
	bench_tipc_peers,
#if IS_ENABLED(CONFIG_SUNRPC)
	bench_sunrpc_peers,
#endif
};

/* ---- A command's words. */

static const struct {
	const char *name;
	size_t offset;
	u32 max;
} numbers[] = {
	{ "size", offsetof(struct bench_request, size), KCCM_BENCH_MAX_SIZE },
	{ "count", offsetof(struct bench_request, count), BENCH_MAX_COUNT },
	{ "warm", offsetof(struct bench_request, warm), BENCH_MAX_COUNT },
	{ "service_us", offsetof(struct bench_request, service_us), 1000000 },
	{ "background", offsetof(struct bench_request, background), 2 },
	{ "ms", offsetof(struct bench_request, ms), 60000 },
	{ "senders", offsetof(struct bench_request, senders), BENCH_MAX_LINES },
	{ "depth", offsetof(struct bench_request, depth), BENCH_MAX_LINES },
	{ "nodes", offsetof(struct bench_request, nodes), 256 },
	{ "trace", offsetof(struct bench_request, trace), 1 },
};

static int parse_peer(const char *name, struct bench_request *rq)
{
	const struct bench_peer *peer;
	int i;

	for (i = 0; i < ARRAY_SIZE(peers); i++) {
		for (peer = peers[i]; peer->name; peer++) {
			if (!strcmp(peer->name, name)) {
				rq->peer = peer;
				return 0;
			}
		}
	}
	pr_err("there is no peer \"%s\" here\n", name);
	return -EINVAL;
}

static int parse_number(const char *name, const char *text,
			struct bench_request *rq)
{
	u32 value;
	int i;

	for (i = 0; i < ARRAY_SIZE(numbers); i++) {
		if (strcmp(numbers[i].name, name))
			continue;
		if (kstrtou32(text, 10, &value) || value > numbers[i].max) {
			pr_err("%s=%s: it must be a number up to %u\n", name,
			       text, numbers[i].max);
			return -EINVAL;
		}
		*(u32 *)((char *)rq + numbers[i].offset) = value;
		return 0;
	}
	pr_err("there is no word \"%s\"\n", name);
	return -EINVAL;
}

static int parse(char *words, struct bench_request *rq)
{
	char *word, *name;
	int ret = 0;

	while (!ret && (word = strsep(&words, " "))) {
		if (!*word)
			continue;
		name = strsep(&word, "=");
		if (!word) {
			pr_err("\"%s\" is not of the form name=value\n", name);
			return -EINVAL;
		}
		ret = strcmp(name, "peer") ? parse_number(name, word, rq) :
					     parse_peer(word, rq);
	}
	return ret;
}

/* ---- What programs cost. */

static int cost_begin(const struct bench_request *rq,
		      struct bench_answer *answer)
{
	int ret;

	if (rq->trace) {
		ret = bench_trace_begin();
		if (ret)
			return ret;
		answer->tracing = true;
	}
	bench_cost_begin(&answer->cost);
	return 0;
}

static int cost_end(const struct bench_request *rq, struct bench_answer *answer)
{
	struct bench_cost cost = answer->cost;
	struct bench_trace trace;

	if (!cost.wall_ns) {
		pr_err("cost-end: cost-begin comes before it\n");
		return -EINVAL;
	}
	bench_cost_end(&cost);
	answer->cost = (struct bench_cost){};
	if (!answer->tracing) {
		bench_say(answer, "cpu_ns=%llu", bench_cost_cpu_ns(&cost));
		return 0;
	}
	answer->tracing = false;
	bench_trace_end(&trace);
	bench_say(answer, "switches=%llu wakeups=%llu allocs=%llu pages=%llu",
		  trace.switches, trace.wakeups, trace.allocs, trace.pages);
	return 0;
}

/* ---- Commands. */

enum {
	NEEDS_PEER = 1,
	NEEDS_COUNT = 2,
	NEEDS_MS = 4,
};

static const struct {
	const char *name;
	int (*run)(const struct bench_request *rq, struct bench_answer *answer);
	int needs;
} commands[] = {
	{ "start", bench_start, NEEDS_PEER },
	{ "stop", bench_stop, NEEDS_PEER },
	{ "call", bench_call, NEEDS_PEER | NEEDS_COUNT },
	{ "flood", bench_flood, NEEDS_PEER | NEEDS_MS },
	{ "inflight", bench_inflight, NEEDS_PEER | NEEDS_MS },
	{ "scale", bench_scale, 0 },
	{ "cost-begin", cost_begin, 0 },
	{ "cost-end", cost_end, 0 },
};

void bench_say(struct bench_answer *answer, const char *fmt, ...)
{
	size_t room = sizeof(answer->text) - answer->len;
	va_list args;

	va_start(args, fmt);
	answer->len += vscnprintf(answer->text + answer->len, room, fmt, args);
	va_end(args);
}

static int run_command(char *line, struct bench_answer *answer)
{
	struct bench_request rq = { .senders = 1, .depth = 1, .nodes = 2 };
	char *name = strsep(&line, " ");
	int i, ret;

	for (i = 0; i < ARRAY_SIZE(commands); i++) {
		if (!strcmp(commands[i].name, name))
			break;
	}
	if (i == ARRAY_SIZE(commands)) {
		pr_err("there is no command \"%s\"\n", name);
		return -EINVAL;
	}
	ret = parse(line, &rq);
	if (ret)
		return ret;
	if ((commands[i].needs & NEEDS_PEER && !rq.peer) ||
	    (commands[i].needs & NEEDS_COUNT && !rq.count) ||
	    (commands[i].needs & NEEDS_MS && !rq.ms) || !rq.senders || !rq.depth) {
		pr_err("%s: a word is missing, or 0\n", name);
		return -EINVAL;
	}
	answer->len = 0;
	WRITE_ONCE(bench_service_us, rq.service_us);
	ret = commands[i].run(&rq, answer);
	WRITE_ONCE(bench_service_us, 0);
	if (ret == -EOPNOTSUPP) {
		answer->len = 0;
		bench_say(answer, "error=unsupported");
		ret = 0;
	}
	if (ret)
		pr_err("%s %s: %pe\n", name, rq.peer ? rq.peer->name : "",
		       ERR_PTR(ret));
	else
		bench_say(answer, "\n");
	return ret;
}

/* ---- The device. */

/* One command at a time. */
static DEFINE_MUTEX(running);

static ssize_t bench_write(struct file *file, const char __user *buf,
			   size_t len, loff_t *ppos)
{
	struct bench_answer *answer = file->private_data;
	char *line;
	int ret;

	line = memdup_user_nul(buf, min_t(size_t, len, 1024));
	if (IS_ERR(line))
		return PTR_ERR(line);
	ret = mutex_lock_killable(&running);
	if (!ret) {
		ret = run_command(strim(line), answer);
		/* What came of it is read from the beginning. */
		*ppos = 0;
		mutex_unlock(&running);
	}
	kfree(line);
	return ret ?: len;
}

static ssize_t bench_read(struct file *file, char __user *buf, size_t len,
			  loff_t *ppos)
{
	struct bench_answer *answer = file->private_data;

	return simple_read_from_buffer(buf, len, ppos, answer->text,
				       answer->len);
}

static int bench_open(struct inode *inode, struct file *file)
{
	file->private_data = kzalloc_obj(struct bench_answer);
	return file->private_data ? 0 : -ENOMEM;
}

static int bench_release(struct inode *inode, struct file *file)
{
	struct bench_answer *answer = file->private_data;
	struct bench_trace trace;

	mutex_lock(&running);
	if (answer->tracing)
		bench_trace_end(&trace);
	mutex_unlock(&running);
	kfree(answer);
	return 0;
}

static const struct file_operations bench_fops = {
	.owner = THIS_MODULE,
	.open = bench_open,
	.release = bench_release,
	.write = bench_write,
	.read = bench_read,
};

static struct miscdevice bench_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kccm_bench",
	.fops = &bench_fops,
	.mode = 0600,
};

int kccm_bench_init(void)
{
	return misc_register(&bench_device);
}

void kccm_bench_exit(void)
{
	misc_deregister(&bench_device);
	bench_stop_all();
}
